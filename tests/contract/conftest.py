"""Real banks on a tiny base: three tasks of letters, trained in a second each, built once for each strategy."""

from __future__ import annotations

import json
import random
import shutil
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import InitConfig, TrainConfig
from lorabank.core.observer import Observer, SilentObserver
from lorabank.core.records import AdapterRecord
from lorabank.workflows.results import AddTaskResult

TASKS = ("one", "two", "three")
SETTINGS = {
    "eval_fraction": 0.5, "epochs": 2, "batch_size": 4, "r": 2, "lora_alpha": 8.0, "learning_rate": 1e-2,
    "keep_samples": 8, "clusters_per_task": 2, "device": "cpu",
}  # fmt: skip


def write_task(path: Path, labels: int, seed: int, rows: int = 24) -> Path:
    """Rows whose label says which part of the alphabet their letters come from."""
    chance = random.Random(seed)
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    chosen = [alphabet[k * 26 // labels : (k + 1) * 26 // labels] for k in range(labels)]
    lines = [
        {"text": " ".join(chance.choices(chosen[i % labels], k=chance.randint(3, 8))), "label": f"part{i % labels}"}
        for i in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@dataclass
class Attended:
    """Adapters under a selector's attention: ``h_k = s B_k A_k x``, ``a = softmax(tanh(u_k . h_k + c_k))``, c_0."""

    digests: tuple[str, ...]
    selector: dict[str, torch.Tensor]

    def hook(self, bank: Path, model: torch.nn.Module) -> None:
        """Add ``sum_k a_k h_k`` to every adapted module's output, one adapter and one token at a time."""
        adapters = []
        for digest in self.digests:
            config = json.loads((bank / "adapters" / digest / "adapter_config.json").read_text(encoding="utf-8"))
            tensors = load_file(bank / "adapters" / digest / "adapter_model.safetensors")
            adapters.append((tensors, config["lora_alpha"] / config["r"]))
        for module in {key.split(":", 1)[1] for key in self.selector}:
            model.get_submodule(module).register_forward_hook(self._adder(module, adapters))

    def _adder(self, module: str, adapters: list[Any]) -> Callable[..., torch.Tensor]:
        u, c, zero = (self.selector[f"{kind}:{module}"] for kind in ("u", "c", "c_zero"))

        def add(_: Any, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
            added = torch.zeros_like(out)
            for token, x in enumerate(inputs[0][0]):
                key = f"base_model.model.{module}.lora_"
                h = [s * t[f"{key}B.weight"] @ (t[f"{key}A.weight"] @ x) for t, s in adapters]
                scores = [zero[0], *(u[k] @ h[k] + c[k] for k in range(len(h)))]
                a = torch.softmax(torch.tanh(torch.stack(scores)), 0)
                added[0, token] = sum(a[k + 1] * h[k] for k in range(len(h)))
            return out + added

        return add


@dataclass
class Lab:
    """A base of one kind and data sets, and banks that are made of them once."""

    kind: str
    base: Path
    folder: Path
    banks: dict[tuple[str, int], Path] = field(default_factory=dict)

    def data(self, task: str) -> Path:
        """The rows of a task: two labels, or three for every second task."""
        path = self.folder / f"{task}.jsonl"
        number = TASKS.index(task)
        return path if path.exists() else write_task(path, labels=2 + number % 2, seed=number)

    def settings(self, task: str, **config: Any) -> TrainConfig:
        return TrainConfig(**({"data": str(self.data(task))} | SETTINGS | config))

    def add(self, bank: Path, task: str, observer: Observer | None = None, **config: Any) -> AddTaskResult:
        settings = self.settings(task, **config)
        return api.add_task(
            bank, task, settings, init=InitConfig(base=str(self.base)), observer=observer or SilentObserver()
        )

    def bank(self, strategy: str, tasks: int) -> Path:
        """A bank that tests only read; `copy` gives one to change."""
        if (strategy, tasks) not in self.banks:
            path = self.folder / f"{strategy}-{tasks}"
            if tasks == 0:
                api.init_bank(path, InitConfig(base=str(self.base)))
            else:
                shutil.copytree(self.bank(strategy, tasks - 1), path)
                self.add(path, TASKS[tasks - 1], strategy=strategy)
            self.banks[strategy, tasks] = path
        return self.banks[strategy, tasks]


KINDS = ("bert", "llama", "t5")
"""A classifier, a causal language model and an encoder-decoder."""


OFTEN = ("olora", "amlora")
"""What every kind of base is tried with each time; the other pairs of kind and strategy are slow tests."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every strategy on the classifier, and two of them on the others; all pairs with ``-m slow``."""
    for item in items:
        given = getattr(item, "callspec", None)
        if given and given.params.get("lab") in KINDS[1:] and given.params.get("strategy", "olora") not in OFTEN:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def make_lab(
    tmp_path_factory: pytest.TempPathFactory,
    save_base: Callable[..., Path],
    save_language_model: Callable[..., Path],
) -> Callable[[str], Lab]:
    """``make_lab(kind)``: the same for each kind of base; a module overrides ``lab`` with it to test them all."""

    @cache
    def make(kind: str) -> Lab:
        folder = tmp_path_factory.mktemp(kind)
        base = save_base(folder / "base") if kind == "bert" else save_language_model(folder / "base", kind)
        return Lab(kind, base, folder)

    return make


@pytest.fixture(scope="session")
def lab(make_lab: Callable[[str], Lab]) -> Lab:
    return make_lab("bert")


@pytest.fixture
def copy(lab: Lab, tmp_path: Path) -> Callable[[str, int], Path]:
    """``copy(strategy, tasks)``: a bank of the test's own."""
    return lambda strategy, tasks: Path(shutil.copytree(lab.bank(strategy, tasks), tmp_path / "bank"))


@pytest.fixture
def by_hand(lab: Lab) -> Callable[..., torch.Tensor]:
    """``by_hand(bank, digests, head_of, texts)``: probabilities from plain transformers and plain safetensors.

    The weights are ``W + sum_k w_k (lora_alpha / r) B_k A_k`` with the adapters of ``digests`` (a mapping gives
    their w; `Attended` gives them by AM-LoRA's equations), the head is that of the adapter ``head_of``; one text at a
    time.
    """

    def run(bank: Path, digests: Any, head_of: str, texts: list[str]) -> torch.Tensor:
        attended = digests if isinstance(digests, Attended) else None
        weights = digests if isinstance(digests, dict) else dict.fromkeys(() if attended else digests, 1.0)
        prefix = "base_model.model."
        model, answer = PLAIN[lab.kind](lab.base, bank, head_of)
        with torch.no_grad():
            for digest, weight in weights.items():
                tensors = load_file(bank / "adapters" / digest / "adapter_model.safetensors")
                config = json.loads((bank / "adapters" / digest / "adapter_config.json").read_text(encoding="utf-8"))
                for key, a in tensors.items():
                    if key.endswith(".lora_A.weight"):
                        module = key.removeprefix(prefix).removesuffix(".lora_A.weight")
                        b = tensors[key.replace("lora_A", "lora_B")]
                        scaling = config["lora_alpha"] / config["r"]
                        model.get_submodule(module).weight += weight * scaling * (b @ a)
            if attended:
                attended.hook(bank, model)
            return torch.stack([answer(text) for text in texts]).softmax(-1)

    return run


def _plain_classifier(base: Path, bank: Path, head_of: str) -> tuple[Any, Callable[[str], torch.Tensor]]:
    """The model with the head of one adapter, and the logits of a text."""
    from transformers import AutoModelForSequenceClassification

    head = load_file(bank / "adapters" / head_of / "adapter_model.safetensors")
    bias, weight = (head[f"base_model.model.classifier.{name}"] for name in ("bias", "weight"))
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(bias)).eval()
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)

    def answer(text: str) -> torch.Tensor:
        ids = [0, *(4 + ord(letter) - ord("a") for letter in text.split()), 2]
        return model(input_ids=torch.tensor([ids])).logits[0]

    return model, answer


def _plain_language_model(base: Path, bank: Path, head_of: str) -> tuple[Any, Callable[[str], torch.Tensor]]:
    """The model, and the log-likelihood of each label of the task behind a text: one plain pass for each."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    snapshot = Bank.open(bank).snapshot()
    (task,) = (task for task in snapshot.tasks if snapshot.adapter_of(task.name).digest == head_of)
    tokenizer = AutoTokenizer.from_pretrained(base)
    causal = snapshot.base.task_type == "CAUSAL_LM"
    model = (AutoModelForCausalLM if causal else AutoModelForSeq2SeqLM).from_pretrained(base).eval()

    def answer(text: str) -> torch.Tensor:
        prompt = tokenizer(f"{text}\nOption: {', '.join(task.labels)}\nAnswer:")["input_ids"]
        scores = []
        for label in task.labels:
            words = f" {label}" if causal else label
            ids = [*tokenizer(words, add_special_tokens=False)["input_ids"], 2]
            if causal:
                logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            else:
                logits = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([ids])).logits[0]
            scores.append(logits.log_softmax(-1)[range(len(ids)), ids].sum())
        return torch.stack(scores)

    return model, answer


PLAIN = {"bert": _plain_classifier, "llama": _plain_language_model, "t5": _plain_language_model}


@pytest.fixture
def adapters() -> Callable[[Path], list[AdapterRecord]]:
    """The adapters of a bank's tasks, in order."""

    def read(bank: Path) -> list[AdapterRecord]:
        snapshot = Bank.open(bank).snapshot()
        return [snapshot.adapter_of(task.name) for task in snapshot.tasks]

    return read


@pytest.fixture
def texts() -> list[str]:
    chance = random.Random(99)
    return [" ".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 8))) for _ in range(12)]


OUTSIDE = Path(__file__).parents[1] / "outside"


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package tests/outside beside lorabank: what an installer would write of it lies in this folder."""
    folder = tmp_path_factory.mktemp("installed")
    project = tomllib.loads((OUTSIDE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"lorabank_extras-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, entries in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(OUTSIDE))
        patch.syspath_prepend(str(folder))
        yield folder
