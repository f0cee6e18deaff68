"""Training steps of the variants of LoRA, against PEFT's own tuner of each, with none and with 15 earlier tasks."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainingArguments

from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import ALPHA, RANK, batch, every_linear, minilm, new_adapter, random_stack
from benchmarks.training import PlainTrainer, adapter_trainer, trainer_step
from lorabank.algebra.stack import AdapterStack
from lorabank.models.tasks.classification import Classification
from lorabank.training.trainer import AdapterTrainer

ROUNDS = 12
DROPOUT = 0.0
"""Of the adapter: PEFT's DoRA passes the base once more where there is one."""

CASES: dict[str, tuple[dict[str, str], dict[str, Any], float]] = {
    "lora-plus": ({"variant": "lora-plus"}, {}, 1.0),
    "dora": ({"variant": "dora"}, {"use_dora": True}, 1.0),
    "pissa": ({"start": "pissa"}, {"init_lora_weights": "pissa"}, 1.0),
}
"""Name to our settings, PEFT's, and the bar."""


def measure() -> list[Result]:
    """All linear layers of MiniLM through one loop, 1,024 tokens, AdamW included."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, use_cpu=True, report_to="none", learning_rate=1e-3)
        return [_measure(name, arguments) for name in CASES]


def _measure(name: str, arguments: TrainingArguments) -> Result:
    own, theirs, bar = CASES[name]
    rows, loss, modules = batch(16, 64), Classification().loss, every_linear(minilm())
    past = random_stack(minilm(), modules, 15)
    trainers = {
        "peft": PlainTrainer(loss, model=_peft(modules, theirs), args=arguments),
        "alone": _ours(modules, None, own, arguments),
        "behind 15": _ours(modules, past, own, arguments),
        "plain": PlainTrainer(loss, model=_peft(modules, {}), args=arguments),
    }
    steps = {which: trainer_step(trainer, rows) for which, trainer in trainers.items()}
    found = compare(steps, baseline="peft", rounds=ROUNDS)
    what = f"{name} step, MiniLM, all linear layers, 1,024 tokens, against PEFT's {name}"
    result = from_comparison("variants", what, found["alone"], bar)
    more = {"with 15 earlier tasks": found["behind 15"].ratio, "PEFT's plain LoRA": found["plain"].ratio}
    return replace(result, detail=result.detail | more)


def _ours(
    modules: list[str], past: AdapterStack | None, own: dict[str, str], arguments: TrainingArguments
) -> AdapterTrainer:
    model = minilm()
    model.requires_grad_(False)
    new = new_adapter(model, modules, DROPOUT, past, **own)
    return adapter_trainer(model, new, Classification().loss, arguments)


def _peft(modules: list[str], settings: dict[str, Any]) -> nn.Module:
    model = get_peft_model(minilm(), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=modules, **settings))
    return model.base_model.model
