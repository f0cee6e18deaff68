"""How a task is asked and how it answers, whatever the kind of model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lorabank.core.errors import ConfigError
from lorabank.core.task_kinds import HEAD

if TYPE_CHECKING:
    from torch import Tensor

    from lorabank.models.tasks.batches import Enter


_ONCE, _USUAL = "max_new_tokens", 50
"""A setting that was a field of its own, and its default: the keys of cells hold it there, whatever the scoring."""


@dataclass(frozen=True)
class AnswerForm:
    """One task's way of asking and answering.

    Attributes:
        labels: What may be answered; empty for free text.
        max_length: Maximum tokens of a text, in text to text of prompt and answer together.
        scoring: ``HEAD``, or a name on the shelf of scorings.
        template: Prompt of a text with its ``{text}``, None where the text is the prompt.
        settings: ``KEY=VALUE`` of each setting of the scoring that is not at its default.
    """

    labels: tuple[str, ...]
    max_length: int
    scoring: str = HEAD
    template: str | None = None
    settings: tuple[str, ...] = ()

    def identity(self) -> Any:
        """JSON value with everything that decides an answer beside the weights."""
        settings = dict(one.split("=", 1) for one in self.settings)
        once = settings.pop(_ONCE, str(_USUAL))
        others = [f"{name}={value}" for name, value in settings.items()]
        value = asdict(self) | {"labels": list(self.labels), "settings": others}
        value[_ONCE] = int(once) if once.isdecimal() else once
        if not others:
            del value["settings"]  # cells of scorings without settings keep the keys that they have
        return value


def check_answer_length(max_new_tokens: int, limit: int | None) -> None:
    """Refuse answers that would fill the model's whole window.

    Args:
        max_new_tokens: Maximum number of new tokens.
        limit: Tokens that the model takes; None for any number.

    Raises:
        ConfigError: Nothing is left for a prompt.
    """
    if limit is not None and max_new_tokens >= limit:
        most = max(1, limit // 2)
        raise ConfigError(
            f"max_new_tokens = {max_new_tokens} leaves no room for a prompt: the base model takes {limit} tokens",
            hint=f"--set max_new_tokens={most}; of generate, --max-new-tokens {most}",
            unchanged="nothing was changed",
        )


@dataclass(frozen=True)
class Answers:
    """What a model said to n texts.

    Attributes:
        said: The label or the generated text.
        probabilities: float32 ``[n]``, the label's probability among its task's labels; NaN for generated text.
        shares: float64 ``[n, labels]``, the probability of each label of the one task that was asked; None where it
            is not known.
    """

    said: tuple[str, ...]
    probabilities: NDArray[np.float32]
    shares: NDArray[np.float64] | None = None


class Answerer(Protocol):
    """Asks a model in the form of each text's task; ``heads`` int64 ``[n]`` says whose form (and head) that is.

    ``generates`` says whether some form is answered by free text.
    """

    forms: tuple[AnswerForm, ...]
    generates: bool

    def answer(self, texts: Sequence[str], heads: NDArray[np.int64], enter: Enter, *, shared: bool) -> Answers:
        """Answer texts; ``shared`` says that the model is in the same state for all of them."""

    def label_shares(
        self, texts: Sequence[str], heads: NDArray[np.int64], enter: Enter, *, shared: bool
    ) -> list[NDArray[np.float64]]:
        """Of each text the probability ``[labels]`` of each label of its form, which has labels; see `answer`."""

    def log_likelihoods(
        self, texts: Sequence[str], targets: Sequence[str], heads: NDArray[np.int64], enter: Enter
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Log-likelihood ``[n]`` of each target after its text, and its tokens ``[n]``."""

    def loss(self, texts: Sequence[str], targets: Sequence[str], heads: NDArray[np.int64], enter: Enter) -> Tensor:
        """The training loss of one batch, a scalar with its graph; ``enter`` is called before every pass."""

    def predictions(self, text: str, target: str, head: int) -> tuple[Tensor, Tensor]:
        """What one row's loss is the mean cross entropy of: logits ``[n, choices]`` with their graph, labels ``[n]``.

        Nothing is predicted (n is 0) where a row does not fit.
        """
