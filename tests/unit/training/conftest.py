"""A tiny base and jobs on it, small enough to train in a second."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core import shelves
from lorabank.core.config import TrainConfig
from lorabank.core.records import BaseModelRecord
from lorabank.models.bases.loading import describe_base
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.bases.resolving import resolve_base
from lorabank.training.job import TrainedAdapter, TrainJob
from lorabank.training.layers.movement import Movement
from lorabank.training.run import train_adapter

STRATEGIES = dict(shelves.STRATEGIES.items())


STILL = 1e-30
"""The learning rate of trainings whose results are looked at for what training began with."""


@pytest.fixture(autouse=True)
def _still_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With this rate alone; that such a training is refused is tested in tests/contract/test_movement.py."""
    check = Movement.check

    def at_any_other_rate(movement: Movement, steps: int, learning_rate: float) -> None:
        if learning_rate != STILL:
            check(movement, steps, learning_rate)

    monkeypatch.setattr(Movement, "check", at_any_other_rate)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, save_base: Callable[..., Path]) -> BaseModelRecord:
    folder = save_base(tmp_path_factory.mktemp("base") / "tiny")
    return describe_base(resolve_base(str(folder)))


@pytest.fixture(scope="session")
def quiet(tmp_path_factory: pytest.TempPathFactory, save_base: Callable[..., Path]) -> BaseModelRecord:
    """A base without dropout."""
    folder = tmp_path_factory.mktemp("quiet") / "tiny"
    return describe_base(
        resolve_base(str(save_base(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)))
    )


def letters(rows: int, seed: int) -> tuple[list[str], list[int]]:
    """Label 1 for texts from the second half of the alphabet; lengths between 2 and 8 letters."""
    chance = random.Random(seed)
    labels = [i % 2 for i in range(rows)]
    halves = ("abcdefghijklm", "nopqrstuvwxyz")
    return [" ".join(chance.choices(halves[label], k=chance.randint(2, 8))) for label in labels], labels


@pytest.fixture
def job(base: BaseModelRecord, tmp_path: Path) -> Callable[..., TrainJob]:
    """``job(work="work", earlier=None, context=(), resume=False, **config)``: 22 rows, 3 epochs of 6 steps."""

    def make(
        work: str = "work",
        *,
        earlier: AdapterStack | None = None,
        context: tuple[str, ...] = (),
        continued: str | None = None,
        resume: bool = False,
        on: BaseModelRecord = base,
        rows: int = 22,
        **config: Any,
    ) -> TrainJob:
        texts, labels = letters(rows, seed=1)
        settings = TrainConfig(**({"data": "-", "batch_size": 4, "epochs": 3, "r": 2, "device": "cpu"} | config))
        (tmp_path / work).mkdir(exist_ok=True)
        return TrainJob(
            base=OpenBase(on),
            config=settings,
            strategy=STRATEGIES[settings.strategy],
            texts=texts,
            targets=[str(label) for label in labels],
            labels=("0", "1"),
            earlier=lambda: earlier,
            context=context,
            continued=continued,
            work=tmp_path / work,
            number=len(earlier.names) if earlier else 0,
            resume=resume,
        )

    return make


class Recorder:
    """Keeps what an observer is told; raises after some steps when asked to."""

    def __init__(self, stop_after: int | None = None, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.notices: list[str] = []
        self.started: list[tuple[str, int]] = []
        self.values: list[dict[str, float]] = []
        self.finished = 0
        self._stop_after = stop_after
        self._error = error

    def notice(self, message: str) -> None:
        self.notices.append(message)

    def start(self, what: str, total: int) -> None:
        self.started.append((what, total))

    def advance(self, done: int, values: dict[str, float]) -> None:
        self.values.append(dict(values))
        if done == self._stop_after:
            raise self._error

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def train(job: Callable[..., TrainJob], recorder: type[Recorder]) -> Callable[..., TrainedAdapter]:
    """``train(observer=None, **as for job)``."""

    def run(observer: Recorder | None = None, **settings: Any) -> TrainedAdapter:
        return train_adapter(job(**settings), observer or recorder())

    return run


@pytest.fixture
def factors_of() -> Callable[[TrainedAdapter], dict[str, Any]]:
    """Every tensor of a trained adapter by a readable name."""

    def collect(trained: TrainedAdapter) -> dict[str, Any]:
        factors: LoraFactors = trained.factors
        return (
            {f"A {name}": tensor for name, tensor in factors.A.items()}
            | {f"B {name}": tensor for name, tensor in factors.B.items()}
            | trained.head
        )

    return collect
