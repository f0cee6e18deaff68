"""Texts of no task feed into a model what they do one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lorabank.models.bases.loading import describe_base
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.facts.inputs import collect_inputs
from lorabank.models.tasks.passages import passages

TEXTS = ["a b c d e f g", "h i", "j k l m", "n"]
MODULES = {
    "bert": ("encoder.layer.1.attention.self.query", "encoder.layer.1.output.dense"),
    "llama": ("model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"),
    "t5": ("encoder.block.1.layer.0.SelfAttention.q", "decoder.block.1.layer.1.EncDecAttention.k"),
}


def loaded(folder: Path) -> Any:
    base = OpenBase(describe_base(resolve_base(str(folder))))
    return base.load(device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("kind", list(MODULES))
def test_texts_together_are_the_texts_alone(kind: str, tmp_path, save_base, save_language_model) -> None:
    folder = save_base(tmp_path / "base") if kind == "bert" else save_language_model(tmp_path / "base", kind)
    base = loaded(folder)
    names = [name for name, _ in base.model.named_modules() if name.endswith(MODULES[kind])]
    assert len(names) == 2

    def collected(texts: list[str], size: int) -> Any:
        batches = passages(base.model, base.tokenizer, texts, max_length=5, batch_size=size)
        return collect_inputs(base.model, names, batches)

    together, alone = collected(TEXTS, 3), [collected([text], 1) for text in TEXTS]
    for name in names:
        total = sum(one.sums[one.shared[name]] for one in alone)
        torch.testing.assert_close(together.sums[together.shared[name]], total, atol=1e-4, rtol=1e-4)
        assert together.tokens[together.shared[name]] == sum(one.tokens[one.shared[name]] for one in alone)
        assert together.tokens[together.shared[name]] < 5 * len(TEXTS)  # the padding is left out


def test_long_texts_are_cut(tmp_path, save_base) -> None:
    base = loaded(save_base(tmp_path / "base"))
    batches = list(passages(base.model, base.tokenizer, TEXTS, max_length=4, batch_size=2))
    assert sum(len(batch["input_ids"]) for batch in batches) == len(TEXTS)
    assert max(batch["input_ids"].shape[1] for batch in batches) == 4
