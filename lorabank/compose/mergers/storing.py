"""A merge as plain tensors, and back: what was fitted on kept rows is not fitted again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorabank.algebra.factors import DenseDelta, LoraFactors
from lorabank.compose.mergers.base import ByModule, Merge

_WHOLE, _EACH = "weight", "weight:"
_A, _B, _GAIN, _DELTA = "A:", "B:", "gain:", "delta:"


def merge_tensors(made: Merge, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Tensors of a merge of some tasks: weights float64, in the tasks' order and without their names.

    Keys: ``weight``; or by module ``weight:<module>``; or ``A:<module>``, ``B:<module>`` with the scaling in it, and
    ``gain:<module>``; or ``delta:<module>``.
    """
    if isinstance(made, ByModule):
        return {f"{_EACH}{module}": own.double().cpu().contiguous() for module, own in made.weights.items()}
    if isinstance(made, DenseDelta):
        parts = {f"{_DELTA}{module}": delta for module, delta in made.single().delta.items()}
    elif isinstance(made, LoraFactors):
        single = made.single()
        parts = {f"{_A}{module}": a for module, a in single.A.items()}
        parts |= {f"{_B}{module}": single.scaled(module) for module in single.B}
        parts |= {f"{_GAIN}{module}": gain for module, gain in single.gain.items()}
    else:
        return {_WHOLE: torch.tensor([made[task] for task in tasks], dtype=torch.float64)}
    return {name: part.cpu().contiguous() for name, part in parts.items()}


def merge_of(tensors: Mapping[str, Tensor], tasks: Sequence[str]) -> Merge:
    """What `merge_tensors` wrote.

    Raises:
        ValueError: They are not a merge of so many tasks.
    """
    if _WHOLE in tensors:
        return dict(zip(tasks, tensors[_WHOLE].tolist(), strict=True))
    kinds = {kind: _named(tensors, kind) for kind in (_EACH, _A, _B, _GAIN, _DELTA)}
    if kinds[_EACH]:
        if any(own.shape != (len(tasks),) for own in kinds[_EACH].values()):
            raise ValueError(f"no weights of {len(tasks)} tasks")
        return ByModule(kinds[_EACH])
    if kinds[_DELTA] or not kinds[_A]:
        return DenseDelta(kinds[_DELTA])
    if kinds[_A].keys() != kinds[_B].keys():
        raise ValueError("A and B of different modules")
    return LoraFactors(kinds[_A], kinds[_B], dict.fromkeys(kinds[_A], 1.0), kinds[_GAIN])


def _named(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}
