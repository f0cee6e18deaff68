"""Rows held out of a training: they are measured between steps, the best step is kept, and they say when to stop.

The loss is the mean cross entropy over all labelled terms of the rows, labels or tokens of answers, in eval mode and
in the weights' own precision. A step is better where its loss is lower; after ``patience`` measurements that are not
better the training stops, as with transformers' `EarlyStoppingCallback` and a threshold of 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.core.errors import DivergedError
from lorabank.core.machine import distributed as processes
from lorabank.models.facts.curves import MOST_POINTS, HeldOut
from lorabank.models.tasks.probing import undisturbed
from lorabank.training.context import Each

Mean = Callable[[Each, nn.Module, dict[str, Tensor]], Tensor]
"""The mean over a batch of a loss of single terms."""


class Measured(NamedTuple):
    """Mean loss and accuracy over the terms of the held-out rows."""

    loss: float
    accuracy: float


def measure(
    model: nn.Module,
    batches: Iterable[dict[str, Tensor]],
    mean: Mean,
    weights: Callable[[Tensor], Tensor] | None = None,
) -> Measured:
    """The loss and accuracy of a model on some batches; the same in every process.

    Args:
        model: As it is trained; it is left as it was.
        batches: Inputs with the rows' numbers.
        mean: `TrainContext.mean`.
        weights: Weight of each term by its label; default: 1.
    """
    sums: list[Tensor] = []

    def note(logits: Tensor, labels: Tensor, _: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, labels, reduction="none")
        loss = loss if weights is None else weights(labels) * loss
        right = (logits.argmax(-1) == labels).double()
        sums.append(torch.stack([loss.double().sum(), right.sum(), right.new_tensor(len(labels))]))
        return loss

    with undisturbed(model):
        for inputs in batches:
            mean(note, model, inputs)
    loss, right, terms = processes.gathered(torch.stack(sums).sum(0).tolist())[0]
    return Measured(loss / terms, right / terms)


class Holding:
    """Measures held-out rows every so many steps, and keeps what was trained at the best of them.

    Args:
        rows: How many there are.
        every: Optimizer steps between two measurements; the last step of a training is measured too.
        patience: Measurements without a lower loss until the training stops; None where it does not.
        measured: Measures them as the model is now.

    Attributes:
        best: What was trained, by name, after the best step.
        best_step: Its number; 0 before anything was measured.
        stopped: Whether the training is to stop.
    """

    def __init__(self, rows: int, every: int, patience: int | None, measured: Callable[[], Measured]) -> None:
        self._rows, self._every, self._patience, self._measured = rows, every, patience, measured
        self._found: list[tuple[int, float, float]] = []
        self.best_step, self._waited = 0, 0
        self.best: dict[str, Tensor] = {}
        self.stopped = False

    @property
    def last(self) -> Measured:
        """What was measured last."""
        return Measured(*self._found[-1][1:])

    @property
    def last_step(self) -> int:
        """The step after which it was measured; 0 before anything was."""
        return self._found[-1][0] if self._found else 0

    def look(self, step: int, total: int, trained: Mapping[str, Tensor]) -> bool:
        """Measure, if it is time.

        Args:
            step: Optimizer steps done.
            total: How many there will be.
            trained: What is trained, by name.

        Returns:
            Whether anything was measured.

        Raises:
            DivergedError: The loss is not finite.
        """
        if step % self._every and step != total:
            return False
        found = self._measured()
        if not math.isfinite(found.loss):
            raise DivergedError(
                f"training diverged: after step {step} the loss of the held-out rows is {found.loss}",
                unchanged="the adapter was not added to the bank",
                hint="lower --learning-rate",
            )
        lowest = min((loss for _, loss, _ in self._found), default=math.inf)
        self._found.append((step, *found))
        self._waited += 1
        if found.loss < lowest:
            self.best_step, self._waited = step, 0
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in trained.items()}
        self.stopped = self._patience is not None and self._waited >= self._patience and step != total
        return True

    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds of it beside ``best``, as JSON has it."""
        return {"found": self._found, "best_step": self.best_step, "waited": self._waited}

    def resume(self, facts: Mapping[str, Any], best: dict[str, Tensor]) -> None:
        """Continue from a checkpoint."""
        self._found = [(step, loss, accuracy) for step, loss, accuracy in facts["found"]]
        self.best_step, self._waited, self.best = facts["best_step"], facts["waited"], best

    def told(self) -> HeldOut | None:
        """The measurements, of very many only the last ones and the best; None where nothing was measured."""
        kept = self._found[-MOST_POINTS + 1 :]
        kept = [one for one in self._found if one[0] == self.best_step and one not in kept] + kept
        if not kept:
            return None
        steps, losses, accuracies = zip(*kept, strict=True)
        return HeldOut(
            rows=self._rows,
            every=self._every,
            patience=self._patience,
            steps=steps,
            losses=losses,
            accuracies=accuracies,
            best=self.best_step,
            stopped=self.stopped,
        )
