"""The terms of the loss of each step: read, shown, and refused where they are not finite.

To read a number from a GPU is to wait until all work before it is done, and a device that is waited for between the
forward and the backward pass runs dry. So there the numbers of a step are copied while it works, and read when the
next step has been given to the device: what is not finite is found one step later, before a checkpoint is written
and before the training ends. On a CPU, where nothing has to be waited for, each term is read when it is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lorabank.core.errors import DivergedError


class LossTerms:
    """Those of the newest step that was read, and of the steps behind it.

    Args:
        late: Whether the terms of a step are read when the next one ends.

    Attributes:
        read: Name to value, the mean over the batches of the newest step that was read; empty before the first.
        step: The number of that step; 0 before the first.
    """

    def __init__(self, *, late: bool) -> None:
        self.read: dict[str, float] = {}
        self.step = 0
        self._batches: dict[str, int] = {}
        self._late = late
        self._open: list[tuple[str, Tensor]] = []
        self._closed: tuple[int, Sequence[str], Tensor, torch.cuda.Event | None] | None = None

    def add(self, step: int, name: str, value: Tensor) -> None:
        """One term of a step that is under way; the first of each batch is the task loss.

        Raises:
            DivergedError: It is not finite, and is read now.
        """
        if self._late:
            self._open.append((name, value.detach().float()))
            return
        self._keep(step, name, float(value.detach()))

    def close(self, step: int) -> None:
        """The step has its terms. Where they are read late, those of the step before are read now.

        Raises:
            DivergedError: One of those is not finite.
        """
        if not self._late:
            return
        values, ready = torch.stack([value for _, value in self._open]), None
        if values.is_cuda:
            values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        names, self._open = [name for name, _ in self._open], []
        self.settle()
        self._closed = step, names, values, ready

    def settle(self) -> None:
        """Read what is left.

        Raises:
            DivergedError: As `close`.
        """
        if self._closed is None:
            return
        (step, names, values, ready), self._closed = self._closed, None
        if ready is not None:
            ready.synchronize()
        for name, value in zip(names, values.tolist(), strict=True):
            self._keep(step, name, value)

    def _keep(self, step: int, name: str, value: float) -> None:
        if step != self.step:
            self.read, self._batches, self.step = {}, {}, step
        batch = self._batches[name] = self._batches.get(name, 0) + 1
        before = self.read.get(name, 0.0)
        self.read[name] = before + (value - before) / batch
        if not math.isfinite(value):
            raise DivergedError(
                f"training diverged at step {step}: "
                + ", ".join(f"{name} = {value}" for name, value in self.read.items()),
                unchanged="the adapter was not added to the bank",
                hint="lower --learning-rate, or raise --batch-size",
            )
