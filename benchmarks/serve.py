"""A bank that is served: a short text by the model that stays loaded, and texts of four models in one batch.

The queue and its thread are part of both; HTTP is not, which is the same for any server. A text is short, so what is
not the model's own pass shows.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

import lorabank
from benchmarks.commands import demo_file, quick_bank, rows
from benchmarks.harness import Result, compare, from_comparison
from benchmarks.random_base import save_base, texts
from benchmarks.scoring import language_model
from lorabank import api
from lorabank.core.config import GenerateConfig, InitConfig, SamplingConfig, TrainConfig
from lorabank.core.observer import SilentObserver
from lorabank.models.answering.replies import GenerationRequest
from lorabank.models.bases.open_base import OpenBase
from lorabank.serving.config import ServeConfig
from lorabank.serving.engine import Engine
from lorabank.serving.jobs import Event, Job
from lorabank.serving.metrics import Meter
from lorabank.workflows.asking.questions import Answered, Question
from lorabank.workflows.open_bank import OpenBank

TASKS, BATCH = 4, 32
SHORT = "A wonderful, moving film."
LONE_BAR, MIXED_BAR, DECODE_BAR = 1.2, 1.15, 1.25
ROUNDS, DECODE_ROUNDS = 30, 10
WRITTEN, WORDS, NEW = 8, 32, 32
"""Free texts of a batch, words of a prompt, tokens of an answer."""


def measure() -> list[Result]:
    """A lone text against the bare base's own pass, and mixed batches against those of a single model."""
    with tempfile.TemporaryDirectory() as folder:
        bank = quick_bank(Path(folder) / "bank", TASKS)
        with _served(bank) as ask:
            labelled = _measure(bank, ask)
        bank = _language_bank(Path(folder) / "language")
        with _served(bank) as ask:
            return [*labelled, *_decoding(bank, ask)]


@contextmanager
def _served(bank: Path) -> Iterator[_Asker]:
    engine = Engine(bank, ServeConfig(device="cpu"), Meter(), lambda message: None)
    engine.start()
    try:
        yield _Asker(engine)
    finally:
        engine.stop()


def _language_bank(folder: Path) -> Path:
    """Tasks of free text on every linear layer of a language model with random weights, trained for a few steps."""
    base, bank = save_base(language_model(), folder / "base"), folder / "bank"
    api.init_bank(bank, InitConfig(base=str(base)))
    settings = TrainConfig(epochs=1.0, eval_fraction=0.5, device="cpu", keep_samples=0, target_modules="all-linear")
    with lorabank.open(bank) as session:
        for number in range(TASKS):
            data = folder / f"{number}.jsonl"
            pairs = zip(texts(16, WORDS, seed=number), texts(16, 4, seed=TASKS + number), strict=True)
            data.write_text("".join(json.dumps({"prompt": one, "completion": two}) + "\n" for one, two in pairs))
            session.add_task(f"task-{number}", replace(settings, data=str(data)), observer=SilentObserver())
    return bank


def _decoding(bank: Path, ask: _Asker) -> list[Result]:
    """Free text of several tasks in one batch, against one task: served, and merged by ``generate``."""
    asked = texts(WRITTEN, WORDS, seed=99)
    one = [_question("task-0", text, NEW) for text in asked]
    mixed = [_question(f"task-{i % TASKS}", text, NEW) for i, text in enumerate(asked)]
    config = GenerateConfig(task="task-0", max_new_tokens=NEW, device="cpu", batch_size=WRITTEN)
    what, found = f"{NEW} tokens for {WRITTEN} prompts to {TASKS} tasks in one batch, against one task", []
    with lorabank.open(bank) as session:
        single = {
            what: lambda: ask(one),
            f"{what} merged, by generate": lambda: session.generate(asked, config, observer=SilentObserver()),
        }
        for name, answer in single.items():
            forms = {"one": answer, "mixed": lambda: ask(mixed)}
            seen = compare(forms, baseline="one", rounds=DECODE_ROUNDS, warmup=1)
            found.append(from_comparison("serve", name, seen["mixed"], DECODE_BAR))
    return found


def _measure(bank: Path, ask: Callable[[Sequence[Question]], list[Event]]) -> list[Result]:
    names = [task.name for task in api.overview(bank).tasks]
    lone = [_question(names[0], SHORT)]
    forms = {"pass": _own_pass(bank), "served": lambda: ask(lone)}
    seen = compare(forms, baseline="pass", rounds=ROUNDS, warmup=3)
    what = "a short text to a served bank, against the forward pass of the bare base"
    results = [from_comparison("serve", what, seen["served"], LONE_BAR)]
    asked = [row["text"] for row in rows(demo_file("sentiment", "test"))][:BATCH]
    one = [_question(names[0], text) for text in asked]
    mixed = [_question(names[i % TASKS], text) for i, text in enumerate(asked)]
    seen = compare({"one": lambda: ask(one), "mixed": lambda: ask(mixed)}, baseline="one", rounds=ROUNDS, warmup=2)
    what = f"{BATCH} texts to {TASKS} models in one batch, against one model"
    return [*results, from_comparison("serve", what, seen["mixed"], MIXED_BAR)]


def _question(model: str, text: str, tokens: int = 1) -> Question:
    return Question(
        model, ({"role": "user", "content": text},), GenerationRequest(SamplingConfig(max_new_tokens=tokens))
    )


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
