"""Folders that the reference implementation of O-LoRA saves: several tasks in one pair of factors a module.

Its fork of PEFT stacks what was learnt before into ``lora_A [r_sum, d_in]`` and ``lora_B [d_out, r_sum]`` and keeps
the task under way in ``loranew_A`` and ``loranew_B`` of rank r; after a task the second is appended to the first,
unless ``save_loranew`` is set. The scaling is ``lora_alpha / r`` with the rank of one task, whatever ``r_sum`` is. So
rows (t - 1) r to t r of A, and the same columns of B, are task t (github.com/cmnfriend/O-LoRA, arXiv 2310.14152).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lorabank.core.errors import ConfigError, DataError
from lorabank.exchange.peft_folder import WEIGHTS_FILE

_UNCHANGED = "nothing was changed"


def join_new(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with ``loranew_A`` and ``loranew_B`` appended to ``lora_A`` and ``lora_B``; others are left alone.

    Raises:
        DataError: The two of a module cannot stand side by side.
    """
    joined = dict(tensors)
    for kind, dim in (("A", 0), ("B", 1)):
        ending = f".loranew_{kind}.weight"
        for key in [key for key in tensors if key.endswith(ending)]:
            new = joined.pop(key)
            into = f"{key.removesuffix(ending)}.lora_{kind}.weight"
            old = joined.get(into)
            if old is None:
                joined[into] = new
            elif old.dim() == new.dim() == 2 and old.shape[1 - dim] == new.shape[1 - dim] and old.dtype == new.dtype:
                joined[into] = torch.cat([old, new], dim)
            else:
                raise DataError(
                    f"{WEIGHTS_FILE}: {key[:200]!r} {list(new.shape)} does not match its lora_{kind} "
                    f"{list(old.shape)}",
                    unchanged=_UNCHANGED,
                )
    return joined


def tasks_in(ranks: Mapping[str, int], r: int, r_sum: int) -> int:
    """How many tasks the factors hold.

    Args:
        ranks: Module to the rank of all its tasks together.
        r: Rank of one task.
        r_sum: What the config says: the rank of all tasks, or of those before the last.

    Raises:
        DataError: The ranks are not those.
    """
    for module, rank in ranks.items():
        if rank not in (r_sum, r_sum + r) or rank % r or rank != next(iter(ranks.values())):
            raise DataError(
                f"{WEIGHTS_FILE}: {module!r} has rank {rank}, which is not one of tasks of rank {r} "
                f"with r_sum {r_sum}, the same in every module",
                unchanged=_UNCHANGED,
            )
    return next(iter(ranks.values())) // r


def check_part(part: int, tasks: int) -> None:
    """Whether a folder of so many tasks has a part of that number, counted from 1.

    Raises:
        ConfigError: It has not.
    """
    if not 1 <= part <= tasks:
        held = "one task" if tasks == 1 else f"{tasks} tasks"
        raise ConfigError(
            f"--part {part}: the adapter holds {held}",
            hint="leave --part out" if tasks == 1 else f"--part 1 to --part {tasks}, or none for all in one adapter",
            unchanged=_UNCHANGED,
        )


def rows_of(part: int, r: int) -> slice:
    """Rows of A, and columns of B, that are task ``part``, counted from 1."""
    return slice((part - 1) * r, part * r)
