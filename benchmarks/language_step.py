"""One O-LoRA step of a language model after 15 earlier tasks, against plain PEFT LoRA and the published form.

The model has SmolLM2-135M's shape and random weights; every linear layer is adapted. All three take the same batch and
compute logits for the answers alone, so the ratio shows what the past costs and nothing else. The published form is
re-created from its description: earlier adapters concatenated and active in every forward pass, and a penalty that
matches parameters by name in a loop over all pairs.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import ALPHA, DROPOUT, RANK, random_stack, smollm2
from benchmarks.published import attach_published, published_penalty
from benchmarks.step import trainer_step
from lorabank.core.observer import SilentObserver
from lorabank.models.causal_lm import CausalLM
from lorabank.models.targets import resolve_target_modules
from lorabank.training.groups import GroupedFactors
from lorabank.training.layer import attach_adapter, fold
from lorabank.training.penalties.orthogonal import Orthogonal
from lorabank.training.trainer import AdapterTrainer

EARLIER_TASKS = 15
BAR = 1.05
ROUNDS = 7
LAMBDA = 0.5


def measure() -> list[Result]:
    """All through ``training_step``, then AdamW."""
    rows = _batch(rows=4, prompt=56, completion=8)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, use_cpu=True, report_to="none", learning_rate=1e-3)
        forms = {
            "peft": trainer_step(_peft(arguments), rows),
            "olora": trainer_step(_olora(arguments), rows),
            "published": trainer_step(_published(arguments), rows),
        }
        found = compare(forms, baseline="peft", rounds=ROUNDS, warmup=1)
    what = f"O-LoRA step, SmolLM2's shape, all linear layers, {EARLIER_TASKS} earlier tasks, against plain PEFT LoRA"
    result = from_comparison("language_step", what, found["olora"], BAR)
    result.detail["published_form"] = found["published"].ratio
    return [result]


def _batch(rows: int, prompt: int, completion: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(0, 49152, (rows, prompt + completion))
    return {
        "input_ids": ids[:, :-1],
        "attention_mask": torch.ones_like(ids[:, :-1]),
        "position_ids": torch.arange(prompt + completion - 1).expand(rows, -1),
        "labels": ids[:, -completion:],
    }


class _SameLoss(Trainer):
    """Plain transformers with the loss on the answers alone."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return CausalLM().loss(model, inputs)


class _PublishedLoss(_SameLoss):
    """The reference's penalty: every pair of parameters is looked at, pairs of one module are multiplied."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        loss = super().compute_loss(model, inputs)
        return loss + LAMBDA * published_penalty(model)


def _peft(arguments: TrainingArguments) -> Trainer:
    config = PeftConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return _SameLoss(model=get_peft_model(smollm2(), config), args=arguments)


def _olora(arguments: TrainingArguments) -> Trainer:
    model = smollm2()
    modules = resolve_target_modules(model, "all-linear", ())
    earlier = random_stack(model, modules, EARLIER_TASKS)
    fold(model, earlier)
    model.requires_grad_(False)
    layers = attach_adapter(model, modules, r=RANK, lora_alpha=ALPHA, use_rslora=False, dropout=DROPOUT)
    return AdapterTrainer(
        model=model,
        args=arguments,
        task_loss=CausalLM().loss,
        lengths=(),
        penalties=[("orthogonal", LAMBDA, Orthogonal())],
        groups=GroupedFactors(layers, earlier, with_basis=False),
        observer=SilentObserver(),
    )


def _published(arguments: TrainingArguments) -> Trainer:
    model = smollm2()
    modules = resolve_target_modules(model, "all-linear", ())
    earlier = random_stack(model, modules, EARLIER_TASKS)
    attach_published(model, modules, earlier)
    return _PublishedLoss(model=model, args=arguments)
