"""What lorabank makes of a tiny model: every answer against plain transformers, one row at a time, and plain PEFT."""

from __future__ import annotations

import gc
import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.config import TrainConfig
from lorabank.core.errors import DivergedError, IncompatibleError, LorabankError
from lorabank.core.observer import SilentObserver
from lorabank.core.records import BaseModelRecord
from lorabank.core.shelves import STRATEGIES
from lorabank.exchange.peft_folder import adapter_files
from lorabank.models.answering.base import AnswerForm
from lorabank.models.answering.head_answers import HeadAnswerer
from lorabank.models.answering.text_answers import TextAnswerer
from lorabank.models.bases.architecture import check_able
from lorabank.models.bases.blocks import of_modules
from lorabank.models.bases.loading import LoadedBase, describe_base, load_base
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.bases.sites import Site
from lorabank.models.bases.targets import find_targets
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.models.tasks.heads import build_head
from lorabank.training.job import TrainJob
from lorabank.training.planning import plan_adapter
from lorabank.training.run import train_adapter
from tests.architectures import zoo
from tests.architectures.plain import TEMPLATE, Plain
from tests.architectures.zoo import Pair

LABELS = ("good", "very bad", "spam spam ham")
TEXTS = (
    "good film", "bad plot the actor is awful and the film was dull of money", "win free cash now click",
    "meet lunch team mail report", "great", "the a is was and of to very not it good bad film",
)  # fmt: skip
"""Two of one length, the others of different lengths."""

TARGETS = tuple(LABELS[i % len(LABELS)] for i in range(len(TEXTS)))
ADAPTERS = 3
OWN = tuple(i % ADAPTERS for i in range(len(TEXTS)))
"""The adapter of each text where each has its own."""
RANK = 4
NEW_TOKENS = 4
TOLERANCE = 2.5e-3
"""In log-probabilities: rounding, which some random models make large."""
LEAST_EFFECT = 5e-3
"""What an adapter must move."""


@dataclass(frozen=True)
class Verdict:
    """What came of a pair with one choice of target modules."""

    pair: Pair
    targets: str
    kind: str
    reason: str = ""


class Unbuilt(Exception):
    """The tiny model does not work in plain transformers."""


class Refused(Exception):
    """One use is refused in one line; the others are not touched by it."""


class Wrong(Exception):
    """An answer is not what plain transformers or PEFT say."""


def silence() -> None:
    """What libraries say about tiny models is no finding. And accelerate collects garbage after each training."""
    gc.collect()
    gc.freeze()
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")


def judge(pair: Pair) -> list[Verdict]:
    """Verdicts over the usual target modules and over every linear layer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base"
        try:
            check_able(_some_config(pair), pair.task_type, "BASE")
            zoo.build(pair, zoo.tiny_config(pair), path)
        except LorabankError as error:
            return [Verdict(pair, "any", "refused", str(error))]
        except Exception as error:
            return [Verdict(pair, "any", "not built", _short(error))]
        return [_verdict(pair, path, targets) for targets in ("auto", "all-linear")]


def _some_config(pair: Pair) -> PreTrainedConfig:
    """A config of the class; one that cannot be made small is asked whether it would be refused all the same."""
    try:
        return zoo.tiny_config(pair)
    except Exception:
        return pair.config_class()


def _short(error: BaseException) -> str:
    """Its first sentence: what some libraries propose behind it is of no use to who reads the page."""
    return f"{type(error).__name__}: {' '.join(str(error).split()).split('. ')[0][:160]}"


def _verdict(pair: Pair, path: Path, targets: str) -> Verdict:
    case = Case(pair, path, targets)
    wrong, notes = [], []
    for step in STEPS:
        try:
            step(case)
        except Refused as error:
            notes.append(str(error))
        except Unbuilt as error:
            return Verdict(pair, targets, "not built", str(error))
        except Exception as error:
            idle = isinstance(error, DivergedError) and "changed nothing" in str(error)
            late = step in (trained_step, answers) and (isinstance(error, IncompatibleError) or idle)
            early = step is may_be_used and isinstance(error, LorabankError)
            if (late or early) and "\n" not in str(error):
                return Verdict(pair, targets, "refused", str(error).replace(str(path), "BASE"))
            wrong.append(f"{step.__name__}: {_short(error)}")
            if step is may_be_used:
                break
    return Verdict(pair, targets, "wrong" if wrong else "right", "; ".join(wrong or notes))


class Case:
    """One tiny model, loaded by lorabank and by plain transformers."""

    def __init__(self, pair: Pair, path: Path, targets: str) -> None:
        self.pair, self.path, self.spec = pair, path, targets
        self.head = pair.task_type == "SEQ_CLS"
        self.unreached: set[str] = set()  # adapted layers that no text passes

    @cached_property
    def record(self) -> BaseModelRecord:
        return describe_base(resolve_base(str(self.path)), self.pair.task_type)

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(
            data="-", target_modules=self.spec, r=RANK, lora_alpha=8.0, lora_dropout=0.0, epochs=1.0, max_length=96,
            batch_size=len(TEXTS), learning_rate=1e-2, max_grad_norm=0.0, device="cpu",
        )  # fmt: skip

    def load(self) -> LoadedBase:
        return load_base(self.record)

    @cached_property
    def base(self) -> LoadedBase:
        """For looking at; whoever changes one loads its own."""
        return self.load()

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        return find_targets(self.base.model, self.spec, self.base.head_modules).sites

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """The modules that hold the sites."""
        return tuple(dict.fromkeys(site.module_name for site in self.sites))

    @cached_property
    def plain(self) -> Plain:
        return self.load_plain()

    def load_plain(self) -> Plain:
        """With the head that lorabank's training begins with."""
        plain = Plain(self.path, self.pair.task_type, LABELS)
        if self.head:
            plain.put_head(build_head(self.base.model, self.base.head_modules, len(LABELS), seed=0).state())
        return plain

    @cached_property
    def adapters(self) -> list[LoraFactors]:
        """Random ones, whose effect is as large as the weights'."""
        torch.manual_seed(1)
        made = []
        for _ in range(ADAPTERS):
            A = {site.name: torch.randn(RANK, site.d_in) / site.d_in**0.5 for site in self.sites}
            B = {site.name: torch.randn(site.d_out, RANK) * 0.15 for site in self.sites}
            made.append(of_modules(LoraFactors(A, B, dict.fromkeys(A, 2.0)), self.sites))
        return made

    @cached_property
    def expected(self) -> Tensor:
        """Log-probabilities of the labels, ``[adapters, texts, labels]``: each text's own adapter, and the first's."""
        found = torch.full((ADAPTERS, len(TEXTS), len(LABELS)), torch.nan)
        for k, adapter in enumerate(self.adapters):
            with self.plain.merged(adapter):
                for i, text in enumerate(TEXTS):
                    if k in (0, OWN[i]):
                        found[k, i] = self.plain.scores(text)
        return found


def may_be_used(case: Case) -> None:
    """What `init` and `add-task` look at before anything is trained."""
    plan_adapter(OpenBase(case.record), case.config, len(LABELS))
    _ = case.targets


def effect(case: Case) -> None:
    """The adapters change the answers, else equal ones would prove nothing."""
    try:
        with torch.no_grad():
            moved = min(float((case.expected[0, i] - case.plain.scores(TEXTS[i])).abs().max()) for i in range(2))
    except Exception as error:
        raise Unbuilt(_short(error)) from error
    if not (moved > LEAST_EFFECT or moved == 0):  # adapters that nothing passes are refused in training
        raise Unbuilt(f"an adapter moves a text's answer by {moved:.1e} only")


def trained_step(case: Case) -> None:
    """One step: the loss is the mean of the single rows', and B moves against their gradient."""
    with tempfile.TemporaryDirectory() as work:
        job = TrainJob(
            base=OpenBase(case.record),
            config=case.config,
            strategy=STRATEGIES.load("isolated"),
            texts=TEXTS,
            targets=TARGETS,
            labels=LABELS,
            template=None if case.head else TEMPLATE,
            earlier=lambda: None,
            context=(),
            continued=None,
            work=Path(work),
            number=0,
        )
        trained = train_adapter(job, SilentObserver())
    if trained.steps != 1:
        raise Wrong(f"{trained.steps} steps")
    model = case.plain.model
    model.requires_grad_(False)
    places = {name: case.plain.parameter(name) for name in case.targets}
    weights = {id(weight): weight.requires_grad_(True) for weight, _ in places.values()}
    counts = [1 if case.head else len(case.plain.words(label)) for label in TARGETS]
    loss = sum(case.plain.loss(t, y) * n for t, y, n in zip(TEXTS, TARGETS, counts, strict=True)) / sum(counts)
    of = dict(zip(weights, torch.autograd.grad(loss, list(weights.values()), allow_unused=True), strict=True))
    model.requires_grad_(False)
    loss = loss.detach()
    if abs(trained.metrics["final_loss"] - float(loss)) > TOLERANCE:
        raise Wrong(f"loss {trained.metrics['final_loss']:.5f}, of single rows {float(loss):.5f}")
    A, B = trained.factors.A, trained.factors.B
    found = {
        name: None if (grad := of[id(weight)]) is None else case.plain.as_matrix(name, grad[where])
        for name, (weight, where) in places.items()
    }
    case.unreached = {name for name, grad in found.items() if grad is None}
    every = {name: torch.zeros_like(B[name]) if grad is None else grad @ A[name].T for name, grad in found.items()}
    noise = 1e-6 * max(float(wanted.abs().max()) for wanted in every.values())
    for name, wanted in every.items():
        clear = wanted.abs() > max(1e-2 * float(wanted.abs().max()), noise)
        if not bool(clear.any()):
            if found[name] is None and bool(B[name].any()):
                raise Wrong(f"B of {name} moves without a gradient")
        elif bool((B[name].sign() != -wanted.sign())[clear].float().mean() > 0.02):
            raise Wrong(f"B of {name} does not move against its gradient")


def answers(case: Case) -> None:
    """Every text with its own adapter, and all with one, in one batch and alone; features; generation."""
    wrong = []
    runtime = runtime_of(case, "likelihood")
    each = np.eye(ADAPTERS, dtype=np.float32)[list(OWN)]
    checks = {"routed": (each, case.expected[OWN, range(len(TEXTS))]), "padded": (each[0], case.expected[0])}
    for what, (weights, expected) in checks.items():
        try:
            found = runtime.answer(list(TEXTS), Plan(weights=weights), 0)
            off = _distance(found.said, found.probabilities, expected)
            if not off <= TOLERANCE:
                wrong.append(f"{what}: off by {off:.4f}")
        except Exception as error:
            wrong.append(f"{what}: {_short(error)}")
    try:
        together, alone = runtime.features(TEXTS, 96), np.concatenate([_alone(runtime, text) for text in TEXTS])
        if (off := float(np.abs(together - alone).max())) > TOLERANCE:
            wrong.append(f"features: off by {off:.4f}")
    except IncompatibleError:
        raise
    except Exception as error:
        wrong.append(f"features: {_short(error)}")
    if wrong:
        raise Wrong("; ".join(wrong))


def _alone(runtime: Runtime, text: str) -> Any:
    runtime.forget_features()
    return runtime.features([text], 96)


def generated(case: Case) -> None:
    """Free text, every prompt with its own adapter."""
    if case.head:
        return
    runtime = runtime_of(case, "generation")
    texts = TEXTS[:ADAPTERS]
    try:
        found = runtime.answer(list(texts), Plan(weights=np.eye(ADAPTERS, dtype=np.float32)), 0).said
    except Exception as error:
        if case.plain.can_generate():
            raise
        raise Refused(f"transformers cannot generate with the tiny model: {_short(error)}") from error
    for i, text in enumerate(texts):
        with case.plain.merged(case.adapters[i]):
            said = case.plain.generate(text, NEW_TOKENS)
        if found[i] != said:
            raise Wrong(f"{found[i]!r}, alone {said!r}")


def runtime_of(case: Case, scoring: Any) -> Runtime:
    base = case.load()
    settings = (f"max_new_tokens={NEW_TOKENS}",) if scoring == "generation" else ()
    form = AnswerForm(
        LABELS, 96, "classification" if case.head else scoring, None if case.head else TEMPLATE, settings
    )
    if case.head:
        head = build_head(base.model, base.head_modules, len(LABELS), seed=0)
        answerer: Any = HeadAnswerer(base, [head], [form], 64)
    else:
        answerer = TextAnswerer(base, case.pair.task_type, [form], 64)
    stack = AdapterStack.build({f"adapter-{k}": adapter for k, adapter in enumerate(case.adapters)})
    return Runtime(base, stack, answerer, batch_size=64)


def _distance(said: Sequence[str], probabilities: Any, expected: Tensor) -> float:
    """Largest difference of a text's answer; 1 where it is another label."""
    best = expected.max(-1)
    right = torch.tensor([label == LABELS[i] for label, i in zip(said, best.indices.tolist(), strict=True)])
    off = (torch.from_numpy(probabilities).log() - best.values).abs()
    return float(off.where(right | off.isnan(), 1.0).max())


def exported(case: Case) -> None:
    """What is exported gives in plain PEFT what it gives here."""
    from peft import PeftModel

    from lorabank.exchange.peft_check import plain_files

    head = case.plain.model.state_dict() if case.head else {}
    modules = case.base.head_modules
    state = {name: value for name, value in head.items() if name.startswith(tuple(f"{m}." for m in modules))}
    first, expected = case.adapters[0], [*case.expected[0, :2]]
    if case.unreached:  # as trained; an expert that the bare base asks nothing is asked by a changed one
        B = {name: torch.zeros_like(b) if name in case.unreached else b for name, b in first.B.items()}
        first = replace(first, B=B)
        with case.plain.merged(first):
            expected = [case.plain.scores(text) for text in TEXTS[:2]]
    files = adapter_files(
        first, state, base_model=str(case.path), task_type=case.pair.task_type, r=RANK, lora_alpha=8.0,
        use_rslora=False, head_modules=modules,
    )  # fmt: skip
    try:
        files = plain_files(files, case.record, len(LABELS))
    except LorabankError as error:
        raise Refused(f"not exported: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        plain = case.load_plain()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain.model = PeftModel.from_pretrained(plain.model, folder).eval()
    with torch.no_grad():
        off = max(float((plain.scores(text) - own).abs().max()) for text, own in zip(TEXTS[:2], expected, strict=True))
    if not off <= TOLERANCE:
        raise Wrong(f"PEFT is off by {off:.4f}")


STEPS = (may_be_used, effect, trained_step, answers, generated, exported)
