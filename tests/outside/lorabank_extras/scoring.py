"""A scoring: the likelihood of a label for its length, so that long labels are not at a disadvantage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lorabank.core.settings import setting
from lorabank.models.answering.base import AnswerForm, Answers
from lorabank.models.answering.scorings.base import Asked, Scoring, most_likely

if TYPE_CHECKING:
    from lorabank.models.tasks.batches import Enter


@dataclass(frozen=True)
class Normalised(Scoring):
    """The label of the highest log-likelihood, divided by a power of its number of tokens."""

    paper = "GPT-3, arXiv 2005.14165, section 2.4"
    metric = "accuracy"
    labelled = True

    power: float = setting(1.0, "The power; 0 is the plain likelihood.", ge=0, le=2)

    def answer(self, asked: Asked, form: AnswerForm, texts: Sequence[str], enter: Enter, *, shared: bool) -> Answers:
        """The label, with its share among the task's labels."""
        lengths = np.array([len(ids) for ids in asked.label_tokens(form)])
        scores = asked.label_log_likelihoods(form, texts, enter, shared=shared)
        return most_likely(form.labels, scores / lengths**self.power)
