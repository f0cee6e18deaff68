"""One O-LoRA step of a language model after 15 earlier tasks, against plain PEFT LoRA and the published form.

The model has SmolLM2-135M's shape and random weights; every linear layer is adapted. All take the same batch and
compute logits for the answers alone, so the first ratio shows what the past costs and nothing else. The second is
against PEFT with logits at every token, which is what it gives when it is asked for a loss. The last is the penalty's
share of our step.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import TrainingArguments

from benchmarks.floors import least_step
from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import ALPHA, DROPOUT, RANK, every_linear, random_stack, smollm2
from benchmarks.penalty import penalty_call
from benchmarks.published import attach_published
from benchmarks.training import PlainTrainer, PublishedTrainer, kept_bytes, memory_result, olora_trainer, trainer_step
from lorabank.models.tasks.causal_lm import CausalLM
from lorabank.training.penalties.orthogonal import Orthogonal

EARLIER_TASKS = 15
BAR = 0.98
FULL_BAR = 0.84
SHARE_BAR = 0.015
ROUNDS = 7


def measure() -> list[Result]:
    """All through ``training_step``, then AdamW."""
    rows = _batch(rows=4, prompt=120, completion=8)
    loss = CausalLM().loss
    modules = every_linear(smollm2())
    earlier = random_stack(smollm2(), modules, EARLIER_TASKS)
    published = smollm2()
    attach_published(published, modules, earlier)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, use_cpu=True, report_to="none", learning_rate=1e-3)
        trainers = {
            "peft": PlainTrainer(_at_answers, model=_peft(), args=arguments),
            "olora": olora_trainer(smollm2(), modules, earlier, loss, arguments),
            "published": PublishedTrainer(loss, model=published, args=arguments),
            "full": PlainTrainer(_everywhere, model=_peft(), args=arguments),
        }
        steps = {name: trainer_step(trainer, rows) for name, trainer in trainers.items()}
        full = steps.pop("full")
        steps["floor"] = least_step(smollm2(), modules, loss, rows)
        steps["penalty"] = penalty_call(smollm2(), modules, earlier, Orthogonal())
        found = compare(steps, baseline="peft", rounds=ROUNDS, warmup=1)
        against_full = compare({"olora": steps["olora"], "full": full}, baseline="full", rounds=ROUNDS, warmup=1)
        kept = {name: kept_bytes(trainer, rows) for name, trainer in trainers.items()}
    what = f"O-LoRA step, SmolLM2's shape, all linear layers, {EARLIER_TASKS} earlier tasks, against plain PEFT LoRA"
    step = from_comparison("language_step", what, found["olora"], BAR)
    return [
        replace(step, peer=found["published"].ratio, floor=found["floor"].ratio),
        from_comparison("language_step", f"{what} with logits at every token", against_full["olora"], FULL_BAR),
        Result(
            "language_step",
            f"penalty of {EARLIER_TASKS} earlier tasks, value and gradient, against the whole step",
            found["penalty"].ratio / found["olora"].ratio,
            SHARE_BAR,
            "x",
            {"seconds": found["penalty"].seconds},
        ),
        memory_result("language_step", "SmolLM2's shape", kept),
    ]


def _batch(rows: int, prompt: int, completion: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(0, 49152, (rows, prompt + completion))
    return {
        "input_ids": ids[:, :-1],
        "attention_mask": torch.ones_like(ids[:, :-1]),
        "position_ids": torch.arange(prompt + completion - 1).expand(rows, -1),
        "labels": ids[:, -completion:],
    }


def _peft() -> PeftModel:
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(smollm2(), config)


def _at_answers(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Through the model inside, whose layers are PEFT's: PEFT's own ``forward`` names no ``logits_to_keep``."""
    assert isinstance(model, PeftModel)
    return CausalLM().loss(model.get_base_model(), inputs)


def _everywhere(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The same loss from the logits of all tokens."""
    labels = inputs["labels"]
    logits = model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False).logits
    return F.cross_entropy(logits[:, -labels.shape[1] :].flatten(0, 1).float(), labels.flatten())
