"""Sequence classification: one label per text, cross entropy on the task's own head."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.core.task_kinds import CLASSIFICATION, TaskKind
from lorabank.models.tasks.encoding import encode_texts, pad_batch
from lorabank.models.tasks.padding import mean_over_passes
from lorabank.models.tasks.task_types import Examples
from lorabank.models.tasks.token_rows import Columns


class Classification:
    """PEFT's ``SEQ_CLS``."""

    kind: ClassVar[TaskKind] = CLASSIFICATION

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
        """Token ids of each text, cut at its end, and the index of its label."""
        encoded = encode_texts(tokenizer, texts, max_length)
        index = {label: i for i, label in enumerate(labels)}
        rows = Columns(ids=encoded.ids, label=array("i", [index[target] for target in targets]))
        return Examples(rows, encoded.lengths, encoded.cut)

    def collate(self, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` ``[n, longest]``, ``labels [n]``, all int64."""
        labels = torch.tensor([row["label"] for row in rows], dtype=torch.long)
        return {**pad_batch(tokenizer, [row["ids"] for row in rows]), "labels": labels}

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Mean cross entropy of ``labels [n]`` under the model's logits ``[n, labels]``, in float32."""
        return mean_over_passes(self._loss, model, inputs)

    def predictions(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits ``[n, labels]`` and label of each row."""
        return self._logits(model, inputs), inputs["labels"]

    def _loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Of rows that may share a pass."""
        return F.cross_entropy(self._logits(model, inputs), inputs["labels"])

    def _logits(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
        return logits.float()
