"""``generation``: free text, one token after the other, each the likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lorabank.models.answering.base import AnswerForm, Answers
from lorabank.models.answering.scorings.base import Asked, Scoring

if TYPE_CHECKING:
    from lorabank.models.tasks.batches import Enter


@dataclass(frozen=True)
class Generation(Scoring):
    """Greedy generation of free text."""

    metric = "exact_match"
    generates = True

    def answer(self, asked: Asked, form: AnswerForm, texts: Sequence[str], enter: Enter, *, shared: bool) -> Answers:
        """What is generated; it has no probability among labels."""
        return Answers(tuple(asked.generated(form, texts, enter)), np.full(len(texts), np.nan, np.float32))
