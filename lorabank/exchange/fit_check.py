"""A foreign adapter beside the base model that it is to sit on: its modules, its shapes, its size and its effect."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import DenseDelta, FactorShape, LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.errors import DataError, IncompatibleError
from lorabank.core.shelves import TASK_TYPES
from lorabank.exchange.expressions import Unreadable
from lorabank.exchange.layouts import check_layout
from lorabank.exchange.peft_folder import CONFIG_FILE, WEIGHTS_FILE
from lorabank.exchange.untrusted_adapter import ForeignAdapter
from lorabank.models.bases.kinds.attention import INPUTS, OUTPUT, attention_in
from lorabank.models.bases.kinds.experts import matrices_in
from lorabank.models.bases.loading import LoadedBase
from lorabank.models.bases.sites import site_of
from lorabank.models.bases.targets import adaptable_modules
from lorabank.models.mixing.mixture import Mixture
from lorabank.models.tasks.causal_lm import IGNORED
from lorabank.models.tasks.heads import Head, head_state, put_head
from lorabank.models.tasks.task_types import TaskType

_UNCHANGED = "nothing was changed"
_CANCELLED = 1e-6
"""``||B A||_F / (||B||_F ||A||_F)`` below which a product is rounding."""


def check_fits(adapter: ForeignAdapter, base: LoadedBase, task_type: str) -> str | None:
    """Compare an adapter with the base model that it is to sit on.

    Returns:
        Why the config could not be asked which modules are adapted, so that the tensors alone say it; None where it
        was asked and agrees.

    Raises:
        IncompatibleError: It is for another task type, or a module or shape is not the base's.
        DataError: Tensors are missing or too many for its own ``target_modules`` and for the base's head, or a
            language model's adapter saves whole modules.
    """
    if adapter.task_type not in (None, task_type):
        _misfit(f"it was trained for {adapter.task_type[:40]!r}, this bank's tasks are {task_type}")
    if not base.head_modules and (adapter.modules_to_save or adapter.head):
        _refuse(
            f"{CONFIG_FILE}: it saves whole modules ({', '.join(adapter.modules_to_save)[:80]}), and of a language "
            "model's adapter only LoRA factors are taken",
            hint="train it without modules_to_save",
        )
    able, _, others = adaptable_modules(base.model, base.head_modules)
    for module, a in adapter.factors.A.items():
        if module in others:
            _misfit(f"it adapts {module!r}, and {others[module]}")
        if module not in able:
            _misfit(
                f"it adapts {module!r}, and the base has no module of that name outside its head that can be adapted"
            )
        found = adapter.factors.B[module].shape[0], a.shape[1]
        wanted = able[module].d_out, able[module].d_in
        if found != wanted:
            _misfit(f"its delta weight of {module!r} has the shape {list(found)}, the base's weight {list(wanted)}")
        window, gained = adapter.windows.get(module), bool(adapter.magnitude)
        if window and (reason := check_layout(able[module], adapter.factors, window, gained=gained)):
            _misfit(f"it adapts {module!r}, and {reason}")
    for module, table in adapter.originals.items():
        if module not in able or not able[module].keeps(table):
            _misfit(f"it brings a table for {module!r} that is not the base's: the base was another, or resized")
    unread = None
    linear = adapter.targets.modules is None  # what "all-linear" means, in PEFT too
    experts = matrices_in(base.model)
    layers = {f"{stem}.{part}": stem for stem in attention_in(base.model) for part in (*INPUTS, OUTPUT)}
    inside = experts | layers.keys()
    named = [name for name, site in able.items() if (site.plain or not linear) and name not in inside]
    try:
        asked = {name for name in experts if adapter.targets.has_experts(name.rpartition(".")[0])}
        asked |= {name for name in layers.keys() & adapter.factors.A if adapter.targets.among([layers[name]])}
        _check_same(adapter, "LoRA tensors of module", set(adapter.factors.A), asked | adapter.targets.among(named))
    except Unreadable as error:
        unread = str(error)
    _check_same(adapter, "head tensor", set(adapter.head), set(head_state(base.model, base.head_modules)))
    return unread


def largest_update(made: LoraFactors | DenseDelta, model: nn.Module) -> float:
    """The largest ``||delta W||_F / ||W||_F`` of a module: far above 1 the adapter drowns the base model.

    Tensors that are 0 in the base, as the biases of many are, can be compared with nothing.
    """
    ratios = [0.0]
    for name in _modules(made):
        weight = site_of(model, name).weight()
        if not weight.count_nonzero():
            continue
        if isinstance(made, DenseDelta) or name in made.gain:
            update = float(_delta(made, name, weight).double().norm())
        else:
            update = abs(made.scaling[name]) * _product_norm(made.B[name], made.A[name])
        ratios.append(update / float(weight.double().norm()))
    return max(ratios)


def _modules(made: LoraFactors | DenseDelta) -> Iterable[str]:
    return made.delta if isinstance(made, DenseDelta) else made.A


def _delta(made: LoraFactors | DenseDelta, name: str, weight: Tensor) -> Tensor:
    return made.delta[name] if isinstance(made, DenseDelta) else made.delta(name, weight)


def _product_norm(b: Tensor, a: Tensor) -> float:
    """``||B A||_F`` of ``B [d_out, r]`` and ``A [r, d_in]``, as ``tr(B^T B A A^T)`` from two r x r matrices."""
    square = float(((b.double().T @ b.double()) * (a.double() @ a.double().T)).sum())
    return math.sqrt(max(square, 0.0))


def _cancels(b: Tensor, a: Tensor) -> bool:
    return _product_norm(b, a) <= _CANCELLED * float(b.double().norm()) * float(a.double().norm())


@torch.inference_mode()
def check_effect(
    base: LoadedBase,
    task_type: str,
    made: LoraFactors | DenseDelta,
    head: Head | None,
    rows: Sequence[Mapping[str, Any]],
    file: str = WEIGHTS_FILE,
) -> None:
    """Pass some rows through the base with and without the adapter; the model keeps the head afterwards.

    Args:
        base: The base.
        task_type: PEFT's name of its task type.
        made: The adapter: factors, or delta weights that are not all 0.
        head: A classifier's head, None for a language model.
        rows: Some of `Examples.rows`, encoded by the task type: in text to text rendered prompts with their answers,
            of which the logits that predict the answers are looked at.
        file: Its name, for messages.

    Raises:
        DataError: The adapter changes no logit, or makes one (or a weight) that is not finite.
    """
    if (
        isinstance(made, LoraFactors)
        and not made.gain
        and all(_cancels(made.B[name], a) for name, a in made.A.items())
    ):
        _refuse(f"{file}: the adapter changes no logit: in every module lora_B lora_A is zero apart from rounding")
    # Some attention kernels turn NaN into 0, so that the logits alone would not tell.
    for module in _modules(made):
        if not bool(_delta(made, module, site_of(base.model, module).weight()).isfinite().all()):
            _refuse(f"{file}: the delta weight of {module!r} is not finite")
    kind: TaskType = TASK_TYPES.load(task_type)()
    if head is not None:
        put_head(base.model, head)
    mixture = Mixture(base.model, _stack(made, base.model.device))
    changed = False
    try:
        if isinstance(made, DenseDelta):
            mixture.merge_dense(made)
        else:
            mixture.merge(torch.ones(1))
        for row in rows:  # one by one: the logits of a batch of plain texts would fill the memory
            inputs = {
                name: tensor.to(base.model.device) for name, tensor in kind.collate(base.tokenizer, [row]).items()
            }
            logits = _logits(kind, base.model, inputs)
            if not bool(logits.isfinite().all()):
                _refuse(f"{file}: with this adapter the base's logits are not finite")
            if not changed:
                with mixture.bare():
                    changed = not torch.equal(_logits(kind, base.model, inputs), logits)
    finally:
        mixture.detach()
    if not changed:
        _refuse(f"{file}: the adapter changes no logit of {len(rows)} texts")


def _stack(made: LoraFactors | DenseDelta, device: torch.device) -> AdapterStack:
    """The modules of an adapter: with its factors, or with no rows."""
    if isinstance(made, LoraFactors):
        return AdapterStack.build({"adapter": made}, device=device)
    shapes = {name: FactorShape(0, delta.shape[1], delta.shape[0], 1.0) for name, delta in made.delta.items()}
    return AdapterStack.reserve({"adapter": shapes}, device=device, dtype=torch.float32)


def _logits(kind: TaskType, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """What the model says where the task type's loss looks: ``[rows, labels]``, or ``[answer tokens, vocabulary]``."""
    seen: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(output.logits))
    try:
        kind.loss(model, inputs)
    finally:
        handle.remove()
    labels = inputs["labels"]
    return seen[-1] if labels.dim() == 1 else seen[-1][:, -labels.shape[1] :][labels != IGNORED]


def _check_same(adapter: ForeignAdapter, what: str, found: set[str], wanted: set[str]) -> None:
    for name in sorted(found - wanted):
        _refuse(f"{adapter.file}: {what} {name!r} is present, but is not part of what {CONFIG_FILE} and base ask for")
    for name in sorted(wanted - found):
        missing = f"{len(wanted - found)} of {len(wanted)}"
        _refuse(f"{adapter.file}: {what} {name!r} is missing ({missing})")


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise DataError(message, hint=hint, unchanged=_UNCHANGED)


def _misfit(reason: str) -> NoReturn:
    raise IncompatibleError(f"the adapter does not fit this bank's base model: {reason}", unchanged=_UNCHANGED)
