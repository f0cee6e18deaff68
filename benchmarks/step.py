"""O-LoRA training steps of an encoder after many earlier tasks, against plain PEFT LoRA with none.

Beside them the published form (`benchmarks.published`) as the peer, and the frozen model without any adapter as the
floor, on the same batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainingArguments

from benchmarks.floors import least_step
from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import ALPHA, DROPOUT, RANK, batch, every_linear, minilm, query_and_value, random_stack
from benchmarks.published import attach_published
from benchmarks.training import PlainTrainer, PublishedTrainer, kept_bytes, memory_result, olora_trainer, trainer_step
from lorabank.models.tasks.classification import Classification

TARGETS = {"query and value": query_and_value, "all linear layers": every_linear}
BARS = {
    ("query and value", 15): 1.01,
    ("query and value", 50): 1.03,
    ("all linear layers", 15): 0.98,
    ("all linear layers", 50): 1.05,
}
ROUNDS = 12


def measure() -> list[Result]:
    """All through the same loop: transformers' ``training_step``, then AdamW."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, use_cpu=True, report_to="none", learning_rate=1e-3)
        return [result for case in BARS for result in _measure(*case, arguments)]


def _measure(which: str, tasks: int, arguments: TrainingArguments) -> list[Result]:
    rows, loss = batch(16, 64), Classification().loss
    modules = TARGETS[which](minilm())
    earlier = random_stack(minilm(), modules, tasks)
    published = minilm()
    attach_published(published, modules, earlier)
    published.classifier.requires_grad_(True)
    ours = olora_trainer(minilm(), modules, earlier, loss, arguments)
    ours.model.classifier.requires_grad_(True)
    trainers = {
        "peft": PlainTrainer(loss, model=_peft(modules), args=arguments),
        "olora": ours,
        "published": PublishedTrainer(loss, model=published, args=arguments),
    }
    steps = {name: trainer_step(trainer, rows) for name, trainer in trainers.items()}
    steps["floor"] = least_step(minilm(), modules, loss, rows)
    found = compare(steps, baseline="peft", rounds=ROUNDS)
    what = f"O-LoRA step, MiniLM, {which}, {tasks} earlier tasks, against plain PEFT LoRA"
    result = from_comparison("step", what, found["olora"], BARS[which, tasks])
    kept = {name: kept_bytes(trainer, rows) for name, trainer in trainers.items()}
    return [
        replace(result, peer=found["published"].ratio, floor=found["floor"].ratio),
        memory_result("step", f"MiniLM, {which}, {tasks} earlier tasks", kept),
    ]


def _peft(modules: Sequence[str]) -> nn.Module:
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=DROPOUT,
        target_modules=list(modules),
        modules_to_save=["classifier"],
        task_type="SEQ_CLS",
    )
    return get_peft_model(minilm(), config)
