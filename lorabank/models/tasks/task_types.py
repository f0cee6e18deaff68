"""What a kind of model learns from: its encoded rows, its batches and its loss; one class each in `TASK_TYPES`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorabank.core.task_kinds import TaskKind


@dataclass(frozen=True)
class Examples:
    """Encoded training rows.

    Attributes:
        rows: What ``collate`` takes. In text to text each holds the token ids ``prompt`` and ``completion``, and its
            ``index`` among the rows that were given.
        lengths: Tokens of each row; in text to text those of prompt and completion together.
        cut: How many rows were shortened.
        dropped: How many rows were left out, because their completion does not fit.
        replayed: How many of the rows, the last ones, are of earlier tasks.
    """

    rows: Sequence[Mapping[str, Any]]
    lengths: Sequence[int]
    cut: int
    dropped: int = 0
    replayed: int = 0


class TaskType(Protocol):
    """One of PEFT's task types.

    Attributes:
        kind: What storage, reports and messages ask of it.
    """

    kind: ClassVar[TaskKind]

    def encode(
        self,
        tokenizer: Any,
        texts: Sequence[str],
        targets: Sequence[str],
        *,
        labels: Sequence[str],
        template: str | None,
        max_length: int,
    ) -> Examples:
        """Token ids of n texts and their targets.

        Args:
            tokenizer: A transformers tokenizer.
            texts: What is asked.
            targets: What is to be answered.
            labels: The labels that may be answered, if they are a list.
            template: Prompt of a text with its ``{text}``, None where the text is the prompt.
            max_length: Maximum tokens of a row.
        """

    def collate(self, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch of `Examples.rows` as the model's inputs, with ``labels``."""

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Mean loss over the batch's labelled tokens (over its rows for a classifier), a float32 scalar."""

    def predictions(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What is predicted for rows that may share a pass, row by row.

        Returns:
            float32 logits ``[n, choices]`` with their graph, and the labels ``[n]``, of every labelled place.
        """
