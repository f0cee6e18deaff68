"""``likelihood``: the label whose words the model finds most likely behind the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabank.models.answering.base import AnswerForm, Answers
from lorabank.models.answering.scorings.base import Asked, Scoring, most_likely

if TYPE_CHECKING:
    from lorabank.models.tasks.batches import Enter


@dataclass(frozen=True)
class Likelihood(Scoring):
    """The likeliest label."""

    metric = "accuracy"
    labelled = True

    def answer(self, asked: Asked, form: AnswerForm, texts: Sequence[str], enter: Enter, *, shared: bool) -> Answers:
        """The label of the highest log-likelihood, with its probability among the task's labels."""
        return most_likely(form.labels, asked.label_log_likelihoods(form, texts, enter, shared=shared))
