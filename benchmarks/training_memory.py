"""What ``add-task`` takes in memory on a base in bfloat16, against PEFT on the same: the stand-in for a GPU.

Four layers of SmolLM2's width, rows of 128 tokens, through `train_adapter` from the base's files on. Counted is what
is alive after a step and what the step kept for its backward pass.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import Result
from benchmarks.random_base import save_base
from benchmarks.training_path import Meter, Rows, ours, peft
from lorabank.models.bases.loading import describe_base
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.bases.resolving import resolve_base

BAR = 1.0
ROWS = Rows(count=12, tokens=128, batch=4)


def measure() -> list[Result]:
    """Two kinds of targets."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 4, "vocab_size": 8192}
        config = LlamaConfig(**shape, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)  # type: ignore[arg-type]
        path = save_base(LlamaForCausalLM(config).bfloat16(), Path(folder) / "base")
        base = OpenBase(describe_base(resolve_base(str(path))))
        for targets, named in (("auto", "query and value"), ("all-linear", "all linear layers")):
            given = {"target_modules": targets, "base_dtype": "bfloat16"}
            theirs = peft(base, ROWS, _meter(), **given).peak()
            own = ours(base, ROWS, _meter(), **given).peak()
            what = f"bytes of a training step on a bfloat16 base, {named}, against PEFT on the same"
            detail = {"bytes": {"lorabank": own, "peft": theirs}}
            results.append(Result("training_memory", what, own / theirs, BAR, "x", detail))
    return results


def _meter() -> Meter:
    return Meter(time.process_time, "cpu")
