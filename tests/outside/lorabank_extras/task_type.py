"""A task type: classification with smoothed labels, under a name of PEFT's that lorabank leaves free."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.core.task_kinds import CLASSIFICATION
from lorabank.models.tasks.classification import Classification
from lorabank.models.tasks.padding import mean_over_passes


class Smoothed(Classification):
    """A tenth of each label is spread over all labels."""

    kind = CLASSIFICATION._replace(name="FEATURE_EXTRACTION")

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Mean cross entropy under the smoothed labels."""
        return mean_over_passes(self._smoothed, model, inputs)

    def _smoothed(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
        return F.cross_entropy(logits.float(), inputs["labels"], label_smoothing=0.1)
