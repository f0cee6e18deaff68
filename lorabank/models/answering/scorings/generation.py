"""``generation``: free text, one token after the other, each the likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lorabank.core.settings import setting
from lorabank.models.answering.base import AnswerForm, Answers
from lorabank.models.answering.scorings.base import Asked, Scoring

if TYPE_CHECKING:
    from lorabank.models.tasks.batches import Enter


@dataclass(frozen=True)
class Generation(Scoring):
    """Greedy generation of free text."""

    metric = "exact_match"
    generates = True

    max_new_tokens: int = setting(50, "Maximum number of new tokens.", ge=1, le=32768)

    @property
    def answer_tokens(self) -> int:
        """Those of an answer."""
        return self.max_new_tokens

    def answer(self, asked: Asked, form: AnswerForm, texts: Sequence[str], enter: Enter, *, shared: bool) -> Answers:
        """What is generated; it has no probability among labels."""
        said = asked.generated(form, texts, enter, max_new_tokens=self.max_new_tokens)
        return Answers(tuple(said), np.full(len(texts), np.nan, np.float32))
