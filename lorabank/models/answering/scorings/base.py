"""What every scoring promises.

An entry of the shelf `lorabank.core.shelves.SCORINGS` is a frozen dataclass of its settings, derived from `Scoring`.
Reports and `show` read its facts, so that its file imports torch only where it answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from lorabank.models.answering.base import AnswerForm, Answers

if TYPE_CHECKING:
    from lorabank.models.tasks.batches import Enter


class Asked(Protocol):
    """A language model in the state that is scored."""

    def label_tokens(self, form: AnswerForm) -> Sequence[list[int]]:
        """The token ids of each label of a task, as they stand behind its prompts."""
        ...

    def label_log_likelihoods(
        self, form: AnswerForm, texts: Sequence[str], enter: Enter, *, shared: bool
    ) -> NDArray[np.float64]:
        """Log-likelihood ``[n, labels]`` of each label behind each text, the sum over its tokens.

        Raises:
            DivergedError: A text has none that is finite.
        """
        ...

    def generated(self, form: AnswerForm, texts: Sequence[str], enter: Enter, *, max_new_tokens: int) -> list[str]:
        """The greedy continuation of each text, at most so many tokens.

        Raises:
            ConfigError: They leave no room for a prompt.
        """
        ...


@dataclass(frozen=True)
class Scoring(ABC):
    """A way to ask a language model; its fields are its settings.

    Attributes:
        paper: Where it was published.
        metric: The metric of a task's cells where none is chosen.
        labelled: Whether it answers with one of the task's labels, which are the answers of the training rows.
        generates: Whether its answers are free text, judged by the text metric that suits them.
        measures: Whether the likelihood of each row's own text is measured, and no answer is compared.
    """

    paper: ClassVar[str | None] = None
    metric: ClassVar[str]
    labelled: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    measures: ClassVar[bool] = False

    @property
    def answer_tokens(self) -> int:
        """Maximum number of tokens that are generated behind a prompt."""
        return 0

    @abstractmethod
    def answer(self, asked: Asked, form: AnswerForm, texts: Sequence[str], enter: Enter, *, shared: bool) -> Answers:
        """The answers to n texts of one task.

        Args:
            asked: The model.
            form: How the task is asked.
            texts: The texts, without their prompt template.
            enter: As `lorabank.models.answering.base.Answerer` has it.
            shared: Whether the model is in one state for all texts.
        """


def most_likely(labels: Sequence[str], scores: NDArray[np.float64]) -> Answers:
    """The label with the highest score of each row, and the shares of all: the softmax of the row.

    Args:
        labels: L labels.
        scores: ``[n, L]``, finite in each row's maximum.
    """
    best = scores.argmax(1)
    share = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    probabilities = share[np.arange(len(scores)), best].astype(np.float32)
    return Answers(tuple(labels[k] for k in best), probabilities, share)
