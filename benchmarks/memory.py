"""What one more earlier task costs in memory while a task is trained, and what an encoded token does.

The penalty needs every earlier A; everything else of the past is folded into the weights once. Memory is counted, not
sampled: the bytes of every tensor that is alive after an optimizer step of a real training run. For tokens what the
encoded rows hold is counted, beside lists of the same token ids.
"""

from __future__ import annotations

import gc
import random
import tempfile
import tracemalloc
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks.harness import Result
from benchmarks.models import RANK, minilm, query_and_value, random_stack
from benchmarks.training_path import alive_storages
from lorabank.algebra.stack import AdapterStack
from lorabank.core.config import TrainConfig
from lorabank.core.observer import SilentObserver
from lorabank.core.task_kinds import DEFAULT_BASE
from lorabank.models.bases.loading import describe_base
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.tasks.classification import Classification
from lorabank.training.job import TrainJob
from lorabank.training.run import train_adapter
from lorabank.training.strategies.presets import OLORA

T = TypeVar("T")

FEW, MANY = 2, 32
BAR = 1.05
ROWS, WORDS = 8000, 50
TOKEN_BAR = 8  # bytes
_VOCABULARY = ("the", "film", "market", "question", "answer", "people", "tokenizer", "continual", "of", "2026")


def measure() -> list[Result]:
    """Growth with the earlier tasks, and bytes of a token."""
    return [_growth(), _token()]


def _token() -> Result:
    """The training rows of a classifier, from their texts."""
    tokenizer = OpenBase(describe_base(resolve_base(DEFAULT_BASE))).tokenizer
    dice = random.Random(0)
    texts = [" ".join(dice.choices(_VOCABULARY, k=dice.randrange(1, 2 * WORDS))) for _ in range(ROWS)]
    encode = partial(Classification().encode, tokenizer, labels=("x",), template=None, max_length=256)
    encode(texts[:8], ["x"] * 8)  # what the tokenizer makes once
    examples, held = _held(lambda: encode(texts, ["x"] * ROWS))
    _, lists = _held(lambda: [list(row["ids"]) for row in examples.rows])
    tokens = sum(examples.lengths)
    what = f"bytes of an encoded token ({tokens:,} in {ROWS:,} rows), its share of its row included"
    detail = {"bytes": held, "lists_bytes": lists, "tokens": tokens}
    return Result("memory", what, held / tokens, TOKEN_BAR, "bytes", detail, peer=lists / tokens, floor=4.0)


def _held(make: Callable[[], T]) -> tuple[T, int]:
    """What is made, and the bytes that Python and numpy hold for it."""
    gc.collect()
    tracemalloc.start()
    made = make()
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return made, held


def _growth() -> Result:
    """The same two training steps after few and after many tasks."""
    model = minilm()
    modules = query_and_value(model)
    factor_bytes = sum(4 * RANK * model.get_submodule(name).in_features for name in modules)
    few, many = (_peak(tasks, lambda tasks=tasks: random_stack(model, modules, tasks)) for tasks in (FEW, MANY))
    growth = (many - few) / (MANY - FEW)
    detail = {"tensor_bytes": {FEW: few, MANY: many}, "growth_bytes": growth, "factor_bytes": factor_bytes}
    what = f"growth of live tensors per earlier task ({FEW} to {MANY}), against its A factors"
    return Result("memory", what, growth / factor_bytes, BAR, "x", detail, floor=1.0)


def _peak(tasks: int, read: Callable[[], AdapterStack]) -> int:
    base = OpenBase(describe_base(resolve_base(DEFAULT_BASE)))
    texts = [f"text number {number}" for number in range(16)]
    with tempfile.TemporaryDirectory() as work:
        job = TrainJob(
            base=base,
            config=TrainConfig(epochs=2, batch_size=8, max_length=16, device="cpu"),
            strategy=OLORA,
            texts=texts,
            targets=["yes" if number % 2 else "no" for number in range(len(texts))],
            labels=("no", "yes"),
            earlier=read,
            context=tuple(f"task-{k}" for k in range(tasks)),
            continued=None,
            work=Path(work),
            number=tasks,
        )
        observer = _LiveTensors()
        train_adapter(job, observer)
    return observer.most


class _LiveTensors(SilentObserver):
    def __init__(self) -> None:
        self.most = 0

    def advance(self, done: int, values: Mapping[str, float]) -> None:
        """After an optimizer step: the bytes of all storages, each counted once."""
        self.most = max(self.most, sum(alive_storages().values()))
