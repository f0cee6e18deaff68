"""What a model answers on some rows is recorded, and recalled when the rows are passed again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorabank.models.facts.answers import Answers, answers_from_bytes, answers_to_bytes, joined, kept_answers
from lorabank.models.tasks.probing import undisturbed
from lorabank.training.context import TrainContext

ROLE = "answers"
"""Role of what a task's kept rows were answered when the task had just been learnt."""


def recorded_answers(
    context: TrainContext, rows: Sequence[int], most: int, *, head: int | None = None, temperature: float = 1.0
) -> tuple[Answers, Tensor]:
    """What the model answers on some rows as it is now, without dropout.

    Args:
        context: Gives the rows; the model may be attached and trained meanwhile.
        rows: Their numbers, ascending or not.
        most: Choices that are kept of each place.
        head: The head that is asked, by default each row's own.
        temperature: By which the logits are divided.

    Returns:
        The answers, row by row in the order of ``rows``, and how many places each row has ``[rows]``.
    """
    found: list[tuple[Tensor, Answers]] = []

    def note(logits: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
        found.append((numbers, kept_answers(logits / temperature, most)))
        return logits.new_zeros(len(logits))

    place = {row: i for i, row in enumerate(rows)}
    size = context.config.batch_size
    with undisturbed(context.model):
        for first in range(0, len(rows), size):
            context.mean(note, context.model, context.inputs(rows[first : first + size], head))
    numbers = torch.tensor([place[row] for part, _ in found for row in part.tolist()], dtype=torch.long)
    answers = joined([part for _, part in found])
    order = numbers.argsort(stable=True)
    return answers.at(order.to(answers.rest.device)), numbers.bincount(minlength=len(rows))


def record_kept(context: TrainContext, most: int) -> dict[str, bytes]:
    """For `Strategy.record`: the answers on the rows that the bank keeps; nothing where it keeps none."""
    return {ROLE: answers_to_bytes(*recorded_answers(context, context.kept, most))} if context.kept else {}


class Recalled:
    """Recorded answers by the numbers of the rows.

    Args:
        answers: Of the rows, one after the other.
        counts: How many places each row has, int64 ``[rows]``.
        first: The number of the first row.
    """

    def __init__(self, answers: Answers, counts: Tensor, first: int = 0) -> None:
        self.answers = answers
        self._starts = (counts.cumsum(0) - counts).to(answers.rest.device)
        self._first = first

    def at(self, rows: Tensor) -> Answers:
        """The answers at places that are given by the number of each one's row, as `Each` has them."""
        order = torch.arange(len(rows), device=rows.device)
        begins = torch.ones_like(rows, dtype=torch.bool)
        begins[1:] = rows[1:] != rows[:-1]
        within = order - torch.where(begins, order, 0).cummax(0).values if len(rows) else order
        return self.answers.at(self._starts[rows - self._first] + within)


def recall_memory(context: TrainContext) -> Recalled:
    """What the rows of `TrainContext.memory` were answered when their tasks had just been learnt."""
    parts, counts = [], []
    for task in context.memory:
        answers, terms = answers_from_bytes(context.objects[ROLE][task.place].data)
        terms = terms[: len(task.rows)]
        parts.append(answers.at(torch.arange(int(terms.sum()))))
        counts.append(terms)
    whole = joined(parts)
    here = Answers(*(part.to(context.model.device) for part in (whole.logits, whole.choices, whole.rest)))
    return Recalled(here, torch.cat(counts), context.memory[0].rows.start)
