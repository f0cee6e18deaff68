"""A bank that is served: a short text by the model that stays loaded, and texts of four models in one batch.

The queue and its thread are part of both; HTTP is not, which is the same for any server. A text is short, so what is
not the model's own pass shows.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.commands import demo_file, quick_bank, rows
from benchmarks.harness import Result, compare, from_comparison
from lorabank import api
from lorabank.core.config import SamplingConfig
from lorabank.models.answering.replies import GenerationRequest
from lorabank.models.bases.open_base import OpenBase
from lorabank.serving.config import ServeConfig
from lorabank.serving.engine import Engine, Event, Job
from lorabank.serving.metrics import Meter
from lorabank.workflows.asking.questions import Answered, Question
from lorabank.workflows.open_bank import OpenBank

TASKS, BATCH = 4, 32
SHORT = "A wonderful, moving film."
LONE_BAR, MIXED_BAR = 1.2, 1.15
ROUNDS = 30


def measure() -> list[Result]:
    """A lone text against the bare base's own pass, and a mixed batch against one of a single model."""
    with tempfile.TemporaryDirectory() as folder:
        bank = quick_bank(Path(folder) / "bank", TASKS)
        engine = Engine(bank, ServeConfig(device="cpu"), Meter(), lambda message: None)
        engine.start()
        try:
            return _measure(bank, _Asker(engine))
        finally:
            engine.stop()


def _measure(bank: Path, ask: Callable[[Sequence[Question]], list[Event]]) -> list[Result]:
    names = [task.name for task in api.overview(bank).tasks]
    lone = [_question(names[0], SHORT)]
    forms = {"pass": _own_pass(bank), "served": lambda: ask(lone)}
    seen = compare(forms, baseline="pass", rounds=ROUNDS, warmup=3)
    what = "a short text to a served bank, against the forward pass of the bare base"
    results = [from_comparison("serve", what, seen["served"], LONE_BAR)]
    texts = [row["text"] for row in rows(demo_file("sentiment", "test"))][:BATCH]
    one = [_question(names[0], text) for text in texts]
    mixed = [_question(names[i % TASKS], text) for i, text in enumerate(texts)]
    seen = compare({"one": lambda: ask(one), "mixed": lambda: ask(mixed)}, baseline="one", rounds=ROUNDS, warmup=2)
    what = f"{BATCH} texts to {TASKS} models in one batch, against one model"
    return [*results, from_comparison("serve", what, seen["mixed"], MIXED_BAR)]


def _question(model: str, text: str) -> Question:
    return Question(model, ({"role": "user", "content": text},), GenerationRequest(SamplingConfig()))


def _own_pass(bank: Path) -> Callable[[], object]:
    """Tokens of the short text, and one pass of the base with its head."""
    loaded = OpenBase(OpenBank(bank).snapshot.base).load(device="cpu", dtype="float32")

    @torch.inference_mode()
    def once() -> object:
        return loaded.model(**loaded.tokenizer(SHORT, return_tensors="pt")).logits.argmax(-1).tolist()

    return once


class _Asker:
    """Waits for the answers of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, questions: Sequence[Question]) -> list[Event]:
        """The last event of each question."""
        found: list[Event] = []
        all_there = threading.Event()

        def tell(event: Event) -> None:
            if isinstance(event, Answered | Exception):
                found.append(event)
                if len(found) == len(questions):
                    all_there.set()

        while not self._engine.ready:
            if self._engine.failure:
                raise self._engine.failure
            threading.Event().wait(0.01)
        self._engine.submit([Job(question, tell) for question in questions])
        all_there.wait()
        if errors := [one for one in found if isinstance(one, Exception)]:
            raise errors[0]
        return found
