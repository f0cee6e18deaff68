"""The model that starts are tried on."""

from __future__ import annotations

import pytest
import torch
from torch import nn


@pytest.fixture
def model(tmp_path_factory, save_base) -> nn.Module:
    from transformers import AutoModelForSequenceClassification

    folder = save_base(tmp_path_factory.mktemp("base") / "tiny")
    torch.manual_seed(3)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
