"""A training step of every variant on the shelf against one of plain LoRA: MiniLM, all linear layers, 512 tokens.

Each variant takes turns with plain LoRA, with the default dropout and all that it does between steps. Its first steps,
in which some measure the model, are not among those that are timed; the timed ones lie in the middle of a training of
`STEPS` steps.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from itertools import count

import torch
from torch import Tensor
from transformers import TrainingArguments

from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import batch, every_linear, minilm, new_adapter
from benchmarks.training import adapter_trainer
from lorabank.algebra.biases import ENDING
from lorabank.core.config import TrainConfig
from lorabank.core.shelves import ALONE, EVERY_VARIANT, MIXTURES, VARIANTS
from lorabank.models.tasks.classification import Classification
from lorabank.training.trainer import AdapterTrainer
from lorabank.training.variants.base import Step

PLAIN = "lora"
BAR, BARS = 1.15, {"dora": 1.06, "galore": 1.5, "flora": 1.5}
"""Times a step of plain LoRA; of those that need the gradient of the weight, more."""
STEPS, FIRST = 400, 150
ROUNDS = 10


def measure() -> list[Result]:
    """One comparison for each variant, with two models in memory at a time."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, use_cpu=True, report_to="none", learning_rate=1e-3)
        return list(_results(arguments))


def _results(arguments: TrainingArguments) -> Iterator[Result]:
    rows = batch(8, 64)
    for name in (*VARIANTS, *MIXTURES):
        if name == PLAIN:
            continue
        gc.collect()  # a trainer is a circle of references, and the next pair needs its memory
        forms = {one: _step(_trainer(one, rows, arguments), rows) for one in (PLAIN, name)}
        found = compare(forms, baseline=PLAIN, rounds=ROUNDS)[name]
        what = f"{name} step, MiniLM, all linear layers, 512 tokens, against plain LoRA"
        yield from_comparison("variant_steps", what, found, BARS.get(name, BAR))


def _trainer(name: str, rows: dict[str, Tensor], arguments: TrainingArguments) -> AdapterTrainer:
    model = minilm()
    model.requires_grad_(False)
    strategy = ALONE if name in MIXTURES else "inclora"
    ending = ENDING if EVERY_VARIANT.load(name).biases else ""
    sites = [f"{module}{ending}" for module in every_linear(model)]
    new = new_adapter(model, sites, TrainConfig.lora_dropout, variant=name, strategy=strategy, rows=rows)
    return adapter_trainer(model, new, Classification().loss, arguments)


def _step(trainer: AdapterTrainer, rows: dict[str, Tensor]) -> Callable[[], None]:
    """The next step, with the variant's hooks around it as in a training."""
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    own, numbers = trainer.live.parametrization, count(FIRST)
    own.resume(Step(1, STEPS), trainer.optimizer)
    trainer.live.refresh()

    def step() -> None:
        now = Step(next(numbers), STEPS)
        trainer.state.global_step, trainer.state.max_steps = now.number - 1, now.total
        trainer.accelerator.gradient_state._set_sync_gradients(True)
        trainer.training_step(trainer.model, rows)
        own.before_step(now)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        own.after_step(now)
        trainer.live.refresh()

    return step
