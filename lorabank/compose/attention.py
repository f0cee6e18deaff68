"""``attention``: a learned selector over the adapters, per module and token (AM-LoRA, arXiv 2409.19611).

The selector (`lorabank.models.gates.attention`) is fitted after the tasks were learnt, on the calibration samples
that the bank keeps: adapters and heads stay frozen, each row is judged by its own task's head, and

    loss = cross entropy + lambda_l1 * sum |u|

with the L1 norm on the selector's dense parameters u (on the attention itself it would be constant). One selector per
stage, over the adapters of that stage, so that a matrix shows what was possible then. With a single adapter there is
nothing to select and that adapter answers alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.compose.base import Fitted, Member, known, made_again, state_weights
from lorabank.core.commands import Command
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import DivergedError, NotFoundError
from lorabank.core.machine.seeding import seed_everything
from lorabank.core.observer import Observer
from lorabank.core.records import CompositionRecord
from lorabank.core.shelves import ROUTING
from lorabank.models.bases.finite import check_tensors
from lorabank.models.gates.attention import Selector
from lorabank.models.mixing.runtime import Plan, Runtime

_NEAR_ZERO = 1e-3
_LOOKED_AT = 64


class Attention:
    """Attention over adapters."""

    mode: ClassVar[str] = "attention"
    routed: ClassVar[bool] = False

    def __init__(
        self,
        tensors: Mapping[int, Mapping[str, Tensor]],
        members: Sequence[Member],
        runtime: Callable[[], Runtime],
        again: Command,
    ) -> None:
        self._tensors = tensors
        self._members = members
        self._runtime = runtime
        self._again = again

    @classmethod
    def fit(
        cls, members: Sequence[Member], config: ComposeConfig, runtime: Callable[[], Runtime], observer: Observer
    ) -> Fitted:
        """Fit a selector for every stage of two or more adapters (or for the last one only)."""
        _check_samples(members)
        stages = [member.position for member in members[1:]]
        if config.stages == "last":
            stages = stages[-1:]
        stored: dict[str, Tensor] = {}
        report: dict[str, Any] = {}
        for stage in stages:
            selector = fit_selector(known(members, stage), config, runtime(), observer)
            stored |= {f"{stage}|{name}": tensor for name, tensor in selector.tensors().items()}
            if stage == stages[-1]:
                report = sparsity(selector, known(members, stage), runtime())
        parameters = {
            "lambda_l1": config.lambda_l1,
            "epochs": config.epochs,
            "learning_rate": config.learning_rate,
            "batch_size": config.batch_size,
            "seed": config.seed,
            "stages": stages,
            "sparsity": report,
        }
        objects = {"selectors": save_tensors(stored)} if stored else {}
        return Fitted(parameters, objects, report)

    @classmethod
    def load(
        cls,
        record: CompositionRecord,
        objects: Mapping[str, bytes],
        members: Sequence[Member],
        runtime: Callable[[], Runtime],
    ) -> Attention:
        """The stored selectors."""
        by_stage: dict[int, dict[str, Tensor]] = {}
        for key, tensor in (load_tensors(objects["selectors"]) if "selectors" in objects else {}).items():
            stage, _, name = key.partition("|")
            by_stage.setdefault(int(stage), {})[name] = tensor
        return cls(by_stage, members, runtime, made_again(record, "--stages", "all"))

    def plan(self, stage: int, texts: Sequence[str]) -> Plan:
        """The stage's selector over the adapters it knows.

        Raises:
            NotFoundError: If no selector was fitted for this stage.
        """
        members = known(self._members, stage)
        if len(members) == 1:
            return Plan(weights=state_weights(self._runtime().stack.names, {members[0].adapter: 1.0}))
        last = members[-1].position
        if last not in self._tensors:
            raise NotFoundError(
                f"the attention has no selector for the stage after {members[-1].task!r}",
                commands=[self._again],
            )
        selector = _selector(members, self._runtime()).load_tensors(self._tensors[last]).requires_grad_(False)
        return Plan(selector=selector, members=_digests(members))

    def as_adapter(self, stage: int, stack: AdapterStack, weight: Callable[[str], Tensor]) -> LoraFactors | None:
        """The adapter of a stage that knows one alone; attention over several depends on the token."""
        members = known(self._members, stage)
        if len(_digests(members)) > 1:
            return None
        return stack.combine(torch.from_numpy(state_weights(stack.names, {members[0].adapter: 1.0})))

    def identity(self, stage: int) -> Any:
        """Which adapters compete, and the selector's tensors."""
        members = known(self._members, stage)
        tensors = self._tensors.get(members[-1].position)
        digest = hashlib.sha256(save_tensors(dict(tensors))).hexdigest() if tensors else None
        return ["attention", list(_digests(members)), digest]


def fit_selector(members: Sequence[Member], config: ComposeConfig, runtime: Runtime, observer: Observer) -> Selector:
    """Learn the attention on the members' calibration samples.

    Args:
        members: Two or more.
        config: lambda_l1, epochs, learning rate, batch size and seed.
        runtime: Its base, adapters and heads stay as they are.
        observer: Gets the loss.

    Raises:
        DivergedError: If the loss is not finite.
    """
    seed_everything(config.seed)
    texts = [text for member in members for text in member.texts]
    targets = [target for member in members for target in member.targets]
    heads = np.array([member.head for member in members for _ in member.texts], np.int64)
    selector = _selector(members, runtime)
    runtime.enter(Plan(selector=selector, members=_digests(members)))
    runtime.base.model.eval()
    optimizer = torch.optim.Adam(selector.parameters(), lr=config.learning_rate)
    steps = math.ceil(config.epochs * math.ceil(len(texts) / config.batch_size))
    observer.start(f"attention over {len(members)} adapters", steps)
    done = 0
    try:
        while done < steps:
            for rows in torch.randperm(len(texts)).split(config.batch_size):
                if done == steps:
                    break
                batch = rows.tolist()
                task_loss = runtime.loss([texts[i] for i in batch], [targets[i] for i in batch], heads[batch])
                loss = task_loss + config.lambda_l1 * selector.l1()
                if not torch.isfinite(loss):
                    raise DivergedError(
                        f"the attention diverged at step {done + 1}",
                        unchanged="the composition did not enter the bank",
                        hint="lower --learning-rate",
                    )
                optimizer.zero_grad()
                loss.backward(inputs=list(selector.parameters()))
                optimizer.step()
                done += 1
                observer.advance(done, {"loss": float(task_loss.detach()), "l1": float(selector.l1().detach())})
    finally:
        observer.finish()
        runtime.mixture.off()
    check_tensors(dict(selector.named_parameters()), "the selector's parameters")
    return selector.requires_grad_(False)


@torch.inference_mode()
def sparsity(selector: Selector, members: Sequence[Member], runtime: Runtime) -> dict[str, Any]:
    """How few adapters answer, over up to 64 calibration texts, one at a time so that no padding counts.

    Returns:
        ``attention``: mean attention of the zero adapter (``"zero"``) and of each task, over modules and tokens;
        ``effective_adapters``: exp of the mean entropy, between 1 and K + 1;
        ``near_zero``: share of the dense parameters below 1e-3 in absolute value.
    """
    seen: list[Tensor] = []
    per_member = max(1, _LOOKED_AT // len(members))
    runtime.enter(Plan(selector=selector, members=_digests(members)))
    with selector.watched(seen):
        for member in members:
            for text, target in list(zip(member.texts, member.targets, strict=True))[:per_member]:
                runtime.loss([text], [target], member.head)
    runtime.mixture.off()
    every = torch.cat([attention.flatten(0, -2) for attention in seen]).double()
    mean: NDArray[np.float64] = every.mean(0).cpu().numpy()
    entropy = -(every * every.clamp_min(1e-300).log()).sum(-1).mean()
    dense = torch.cat([u.flatten() for u in selector.u.values()])
    names = ("zero", *(member.task for member in members))
    return {
        "attention": {name: float(value) for name, value in zip(names, mean, strict=True)},
        "effective_adapters": float(entropy.exp()),
        "near_zero": float((dense.abs() < _NEAR_ZERO).double().mean()),
    }


def _selector(members: Sequence[Member], runtime: Runtime) -> Selector:
    return Selector(runtime.stack.select(_digests(members)))


def _digests(members: Sequence[Member]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(member.adapter for member in members))


def _check_samples(members: Sequence[Member]) -> None:
    missing = [member.task for member in members if not member.texts]
    if missing and len(members) > 1:
        raise NotFoundError(
            f"task {missing[0]!r} was added without calibration samples, which attention is fitted on",
            hint=f"{ROUTING} needs none",
            commands=[Command("compose", "--mode", ROUTING)],
            unchanged="nothing was changed",
        )
