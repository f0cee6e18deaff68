"""Several processes that train one adapter, as ``torchrun`` and ``accelerate launch`` start them.

A step has the rows that it has in one process; each process takes its share of them. With n_w of the n terms of the
batch's mean loss (rows, or labelled tokens) in process w of W, and L_w their mean,

    L = sum_w n_w / n L_w,        and the mean over the processes of  W n_w / n grad L_w  is  grad L,

which is what averaging gradients (``DistributedDataParallel``) gives when each process weighs its loss by W n_w / n. A
penalty is about the factors, which every process holds: the mean of W equal gradients is that gradient.

The bank is read and written by the main process (rank 0) alone; the others learn from it what to train. Torch is
imported when there are several processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from lorabank.core.errors import ConfigError, LorabankError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_PATIENCE = 7
"""Days that a process waits for the others; when one is gone, its launcher ends the rest at once."""

_OTHERS = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")

_store: Any = None  # a torch.distributed.Store


def count() -> int:
    """How many processes work together; 1 outside of a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def rank() -> int:
    """Number of this process; the main one is 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def join() -> None:
    """Let the processes know each other; nothing happens where there is one, or when they do already.

    Raises:
        ConfigError: The launcher was told to split the model.
    """
    global _store
    if count() == 1 or _store is not None:
        return
    if any(os.environ.get(name, "").lower() in ("1", "true") for name in _OTHERS):
        raise ConfigError(
            "each process trains with the whole base model: FSDP, DeepSpeed and Megatron-LM are not supported",
            hint="accelerate launch --multi_gpu, or torchrun",
            unchanged="nothing was changed",
        )
    import atexit
    from datetime import timedelta

    import torch
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.rendezvous import rendezvous

    _store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=10)))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    init_process_group(backend, store=_store, rank=rank(), world_size=count(), timeout=timedelta(days=_PATIENCE))
    atexit.register(destroy_process_group)


def device_name(asked: str) -> str:
    """The name of this process's device: ``"auto"`` and ``"cuda"`` are a GPU of its own where there are several.

    Raises:
        ConfigError: One GPU was asked for by its number.
    """
    if count() == 1 or asked == "cpu":
        return asked
    if asked not in ("auto", "cuda"):
        raise ConfigError(
            f"--device {asked} names one device for {count()} processes",
            hint="--device cuda: each process takes a GPU of its own",
            unchanged="nothing was changed",
        )
    import torch

    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    if asked == "auto" and (cpu or not torch.cuda.is_available()):
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', rank())}"


def from_main(work: Callable[[], T]) -> T:
    """Do something in the main process alone; every process gets what it gives, or the error that it raises."""
    if count() == 1:
        return work()
    from torch import device
    from torch.distributed import broadcast_object_list

    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told[0] = work()
        except LorabankError as error:
            told[1] = error
    broadcast_object_list(told, src=0, device=device("cpu"))
    if told[1] is not None:
        raise told[1]
    return told[0]  # type: ignore[no-any-return]


def gathered(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    if count() == 1:
        return [value]
    from torch.distributed import all_gather_object

    values: list[Any] = [None] * count()
    all_gather_object(values, value)
    return values


def weighed(loss: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A process's part of the mean loss of a batch.

    Args:
        loss: Mean over the process's terms, a scalar.
        labels: Their labels; -100 stands for no term.

    Returns:
        The loss whose gradient, averaged over the processes, is that of the mean over all terms; and that mean, the
        same in every process, without a graph.
    """
    if count() == 1:
        return loss, loss.detach()
    import torch
    from torch.distributed import all_reduce

    terms = (labels != -100).sum().float()
    sums = torch.stack([loss.detach().float() * terms, terms])
    all_reduce(sums)
    return loss * (count() * terms / sums[1]), sums[0] / sums[1]


def averaged(tensor: Tensor) -> Tensor:
    """The mean over the processes of a tensor of one shape, the same in each of them to the bit."""
    if count() == 1:
        return tensor
    from torch.distributed import all_reduce

    total = tensor.clone()
    all_reduce(total)
    return total / count()


def failed_before(exit_code: int) -> int | None:
    """Tell the others that this process has failed.

    Args:
        exit_code: What it would end with.

    Returns:
        The exit code of the process that failed first and says why; None if that is this one.
    """
    if _store is None:
        return exit_code if rank() else None
    try:
        first = _store.compare_set("lorabank-failed", "", f"{rank()} {exit_code}").split()
    except RuntimeError:  # the main process kept what they told each other, and is gone
        return exit_code if rank() else None
    return None if int(first[0]) == rank() else int(first[1])
