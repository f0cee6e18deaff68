"""A training as a user starts it, and the same rows through transformers' Trainer and PEFT, step by step.

Ours is `train_adapter` from the base's files to the trained adapter, with what it folds, copies and keeps on the way.
Bytes are those of a GPU's allocator; on a CPU they are counted: the tensors that are alive after a step, and what the
passes of the step kept for going backward. A step is what lies between the ends of two steps.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from benchmarks.models import ALPHA, DROPOUT, RANK
from benchmarks.random_base import texts
from benchmarks.training import PlainTrainer
from lorabank.algebra.stack import AdapterStack
from lorabank.core.config import TrainConfig
from lorabank.core.observer import SilentObserver
from lorabank.core.shelves import TASK_TYPES
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.bases.targets import find_targets
from lorabank.training.job import TrainJob
from lorabank.training.run import train_adapter
from lorabank.training.strategies.presets import OLORA

ANSWER = 8
"""Words of an answer."""


@dataclass(frozen=True)
class Rows:
    """What is trained on: ``count`` rows of ``tokens`` tokens, in batches of ``batch``."""

    count: int
    tokens: int
    batch: int

    def texts(self) -> tuple[list[str], list[str]]:
        """Prompts and answers; two tokens of a row are the first and the last one."""
        return texts(self.count, self.tokens - ANSWER - 2), texts(self.count, ANSWER, seed=1)


@dataclass
class Meter:
    """Marks the end of each step.

    Args:
        clock: Seconds.
        device: Whose memory is looked at; counted on a CPU, where that takes longer than the step.
        counts: Whether memory is looked at.
    """

    clock: Callable[[], float]
    device: str
    counts: bool = True
    times: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    _kept: dict[int, int] = field(default_factory=dict)
    _own: set[int] = field(default_factory=set)

    def mark(self) -> None:
        """A step has ended."""
        self.times.append(self.clock())
        if self.counts and self.device.startswith("cuda"):
            self.bytes.append(torch.cuda.max_memory_allocated(self.device))
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.counts:
            alive = alive_storages()
            self.bytes.append(sum(alive.values()) + sum(self._kept.values()))
            self._kept, self._own = {}, set(alive)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A training."""
        counted = self.counts and not self.device.startswith("cuda")
        with torch.autograd.graph.saved_tensors_hooks(self._pack, _as_it_is) if counted else nullcontext():
            yield

    def seconds(self) -> float:
        """Median of a step, the first ones left out."""
        steps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return statistics.median(steps[len(steps) // 4 :])

    def peak(self) -> int:
        """Most bytes of a step behind the first, of which some is loading."""
        return max(self.bytes[1:])

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor


def ours(
    base: OpenBase,
    rows: Rows,
    meter: Meter,
    names: tuple[str, ...] = (),
    earlier: Callable[[], AdapterStack] | None = None,
    **settings: Any,
) -> Meter:
    """Train an adapter with O-LoRA on top of earlier ones, which are read when they are needed.

    ``settings`` are those of `TrainConfig`.
    """
    prompts, answers = rows.texts()
    given = {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": DROPOUT, "epochs": 1, "save_steps": 10**6} | settings
    with tempfile.TemporaryDirectory() as work, meter.watching():
        job = TrainJob(
            base=base,
            config=TrainConfig(batch_size=rows.batch, max_length=rows.tokens, device=meter.device, **given),
            strategy=OLORA,
            texts=prompts,
            targets=answers,
            labels=(),
            earlier=earlier or (lambda: None),
            context=names,
            continued=None,
            work=Path(work),
            number=len(names),
        )
        train_adapter(job, _Watching(meter))
    return meter


def peft(base: OpenBase, rows: Rows, meter: Meter, **settings: Any) -> Meter:
    """The same rows, rank, dropout and optimizer; a base in bfloat16 under autocast, as PEFT is used on one."""
    loaded = base.load(device=meter.device, dtype=settings.get("base_dtype", "auto"))
    task = TASK_TYPES.load(base.record.task_type)()
    prompts, answers = rows.texts()
    examples = task.encode(loaded.tokenizer, prompts, answers, labels=(), template=None, max_length=rows.tokens)
    targets = list(find_targets(loaded.model, settings.get("target_modules", "auto"), ()).names)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=targets)
    rounded = loaded.model.dtype == torch.bfloat16
    wrapped = get_peft_model(loaded.model, config)

    def loss(model: Any, inputs: dict[str, Tensor]) -> Tensor:
        return task.loss(wrapped.get_base_model(), inputs)  # PEFT's own forward hides what a model takes

    with tempfile.TemporaryDirectory() as work, meter.watching():
        on_cpu = meter.device == "cpu"
        arguments = TrainingArguments(
            output_dir=work,
            per_device_train_batch_size=rows.batch,
            num_train_epochs=1,
            learning_rate=1e-3,
            optim="adamw_torch_fused",
            use_cpu=on_cpu,
            bf16=rounded,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = PlainTrainer(
            loss,
            model=wrapped,
            args=arguments,
            train_dataset=examples.rows,
            data_collator=partial(task.collate, loaded.tokenizer),
            callbacks=[_Marking(meter)],
        )
        trainer.train()
    return meter


class _Watching(SilentObserver):
    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def advance(self, done: int, values: Mapping[str, float]) -> None:
        self._meter.mark()


class _Marking(TrainerCallback):
    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._meter.mark()


def alive_storages() -> dict[int, int]:
    """The storages of all tensors with their bytes, each once."""
    gc.collect()
    tensors = (thing for thing in gc.get_objects() if issubclass(type(thing), Tensor) and thing.device.type != "meta")
    return {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
