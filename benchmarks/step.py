"""One O-LoRA training step after 15 earlier tasks against a step of plain PEFT LoRA with none."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import Trainer, TrainingArguments

from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import ALPHA, DROPOUT, RANK, batch, minilm, query_and_value, random_stack
from lorabank.core.observer import SilentObserver
from lorabank.models.classification import Classification
from lorabank.training.groups import GroupedFactors
from lorabank.training.layer import attach_adapter, fold
from lorabank.training.penalties.orthogonal import Orthogonal
from lorabank.training.trainer import AdapterTrainer

EARLIER_TASKS = 15
BAR = 1.05
ROUNDS = 24


def measure() -> list[Result]:
    """Both through the same loop: transformers' ``training_step``, then AdamW."""
    rows = batch(16, 64)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, use_cpu=True, report_to="none", learning_rate=1e-3)
        forms = {"peft": trainer_step(_peft(arguments), rows), "olora": trainer_step(_olora(arguments), rows)}
        comparison = compare(forms, baseline="peft", rounds=ROUNDS)["olora"]
    what = f"O-LoRA step, {EARLIER_TASKS} earlier tasks, against plain PEFT LoRA"
    return [from_comparison("step", what, comparison, BAR)]


def _peft(arguments: TrainingArguments) -> Trainer:
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=DROPOUT,
        target_modules=["query", "value"],
        modules_to_save=["classifier"],
        task_type="SEQ_CLS",
    )
    return Trainer(model=get_peft_model(minilm(), config), args=arguments)


def _olora(arguments: TrainingArguments) -> AdapterTrainer:
    model = minilm()
    modules = query_and_value(model)
    earlier = random_stack(model, modules, EARLIER_TASKS)
    fold(model, earlier)
    model.requires_grad_(False)
    layers = attach_adapter(model, modules, r=RANK, lora_alpha=ALPHA, use_rslora=False, dropout=DROPOUT)
    model.classifier.requires_grad_(True)
    return AdapterTrainer(
        model=model,
        args=arguments,
        task_loss=Classification().loss,
        lengths=(),
        penalties=[("orthogonal", 0.5, Orthogonal())],
        groups=GroupedFactors(layers, earlier, with_basis=False),
        observer=SilentObserver(),
    )


def trainer_step(trainer: Trainer, *batches: dict[str, Tensor]) -> Callable[[], Any]:
    """One training step over the batches, and AdamW, as a call."""
    trainer.create_optimizer()

    def step() -> None:
        trainer.current_gradient_accumulation_steps = len(batches)
        for left, rows in zip(reversed(range(len(batches))), batches, strict=True):
            trainer.accelerator.gradient_state._set_sync_gradients(left == 0)
            trainer.training_step(trainer.model, rows)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step
