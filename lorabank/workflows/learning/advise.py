"""``advise``: which variant and start suit some rows, found by training each a little beside the bank.

Every candidate is trained in a copy of the bank, so its strategy finds the same past that ``add-task`` would find, and
is scored on rows that are held out from the training rows. Test rows are never read. The copies are deleted.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorabank.bank.objects.layout import Layout
from lorabank.bank.upkeep.backup import copy_bank
from lorabank.core.commands import Command
from lorabank.core.config import AdviseConfig, InitConfig, TrainConfig
from lorabank.core.errors import ConfigError, IncompatibleError, LorabankError
from lorabank.core.machine.memory import PeakMemory
from lorabank.core.observer import Observer, SilentObserver
from lorabank.core.shelves import EVERY_VARIANT, STARTS, VARIANTS
from lorabank.core.showing import shown
from lorabank.training.methods import chosen_strategy
from lorabank.training.planning import check_warmup, warmup_steps
from lorabank.workflows.learning.halving import Pace, Schedule, fitted, round_sizes, successive_halving
from lorabank.workflows.learning.past import restart_command, typed
from lorabank.workflows.learning.plan import plan_task
from lorabank.workflows.learning.train import add_task
from lorabank.workflows.open_bank import OpenBank

_NAME, _PREFIX = "candidate", "lorabank-advise-"
_PLAIN = TrainConfig.variant, TrainConfig.start
_WARM = 4
"""Steps of the training that is not counted."""
_NOT_IN_TRIALS: dict[str, Any] = {
    "eval_data": None, "report_to": "none", "max_steps": None, "eval_every": None, "early_stopping": None,
}  # fmt: skip
_FASTER = 2.0
"""Plain LoRA is tried at this multiple of its learning rate too: part of what variants gain is a larger step."""


@dataclass(frozen=True)
class Trial:
    """What a candidate came to.

    Attributes:
        variant: Its variant.
        start: Its start.
        learning_rate: AdamW's.
        score: On the held-out rows.
        low: Lower end of its 95 % interval.
        high: Its upper end.
        epochs: Passes over the training rows; more in later rounds.
        steps: Optimizer steps.
        seconds: Time of the training.
        parameters: Numbers that are trained, with the head's.
        bytes: What the bank would store.
        memory: Peak bytes of the process above what it held before; None where it is not known.
        capacity_left: Share of the input directions that stay free on the fullest module; None for an adapter without
            A and B.
        overlap: Largest overlap with an earlier adapter; None where there is none, or the adapter has no A and B.
    """

    variant: str
    start: str
    learning_rate: float
    score: float
    low: float
    high: float
    epochs: float
    steps: int
    seconds: float
    parameters: int
    bytes: int
    memory: int | None
    capacity_left: float | None
    overlap: float | None


@shown("metric", "rows", "trials")
@dataclass(frozen=True)
class Advice:
    """All candidates, the best one first.

    Attributes:
        metric: Of the scores.
        rows: Held-out rows that were scored.
        trials: Those of the last round first, each round from the best.
        left_out: Candidate that was not trained, to the reason.
        again: Trains the best one on all rows.
    """

    metric: str
    rows: int
    trials: tuple[Trial, ...]
    again: Command
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Candidate:
    variant: str
    start: str
    faster: bool = False

    def __str__(self) -> str:
        return f"{self.variant} from {self.start}" + (f", {_FASTER:g} x the learning rate" if self.faster else "")


def advise(
    opened: OpenBank, config: TrainConfig, how: AdviseConfig, *, init: InitConfig | None, observer: Observer
) -> Advice:
    """Try variants and starts on a task's rows; the bank is not changed.

    Args:
        opened: The bank; where there is none, the task would be its first.
        config: How the task would be trained. Its variant and start are not looked at, nor its evaluation rows, and
            every trial takes the epochs of its round, without early stopping and with its share of the warm-up.
        how: The candidates and the time.
        init: Makes the bank where there is none.
        observer: Gets notices and the progress of each training.

    Raises:
        ConfigError: No candidate can be trained, or the warm-up is not shorter than the training.
        DataError: The rows cannot be read.
    """
    candidates, left_out = _candidates(config, how)
    _sweep()
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as folder:
        trials = _Trials(opened, Path(folder), config, init, observer)
        found = trials.run_all(candidates, how) if candidates else []
    left_out = trials.left_out | left_out  # a reason that candidates have in common first
    if not found:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:1])
        raise ConfigError(f"no candidate can be trained; {why}", hint=trials.hint, unchanged="nothing was changed")
    again = _again(config, None if opened.exists else init, found[0])
    return Advice(trials.metric, trials.rows, tuple(found), again, left_out)


def _candidates(config: TrainConfig, how: AdviseConfig) -> tuple[list[_Candidate], dict[str, str]]:
    """Each variant with the default start, each start with plain LoRA, and plain LoRA at a larger learning rate."""
    variants, starts = how.variants or tuple(VARIANTS), how.starts or tuple(STARTS)
    for shelf, names in ((EVERY_VARIANT, variants), (STARTS, starts)):
        for name in names:
            shelf.check(name)
    strategy = chosen_strategy(config)
    pairs = [_PLAIN, *((one, _PLAIN[1]) for one in variants), *((_PLAIN[0], one) for one in starts)]
    candidates, left_out = list[_Candidate](), dict[str, str]()
    for variant, start in dict.fromkeys(pairs):
        one = _Candidate(variant, start)
        reason = EVERY_VARIANT.load(variant)().refuses(strategy, STARTS.load(start)())
        if reason:
            left_out[str(one)] = reason
        else:
            candidates.append(one)
    return [candidates[0], replace(candidates[0], faster=True), *candidates[1:]] if candidates else [], left_out


class _Trials:
    """Trains candidates, each in a copy of the bank."""

    def __init__(
        self, opened: OpenBank, folder: Path, config: TrainConfig, init: InitConfig | None, observer: Observer
    ) -> None:
        self._asked, self._config = config, replace(config, **_NOT_IN_TRIALS)
        self._opened, self._init, self._observer = opened, init, observer
        self._folder, self._past = folder, folder / "past"
        if opened.exists:
            copy_bank(Layout(Path(opened.path)), self._past)
        self.left_out: dict[str, str] = {}
        self.hint: str | None = None
        self.metric, self.rows, self._epoch, self._warmup = "", 0, 1, 0.0

    def run_all(self, candidates: Sequence[_Candidate], how: AdviseConfig) -> list[Trial]:
        """Successive halving within the time; the first candidate that trains shows how long a step takes."""
        self._measure(candidates)
        warm = next((found for one in candidates if (found := self.run(one)) is not None), None)
        if warm is None:
            return []
        candidates = [one for one in candidates if str(one) not in self.left_out]
        known = dict[tuple[_Candidate, float], Trial | None]()
        pace = Pace(self._epoch, warm.seconds / warm.steps, 0.0)
        schedule = self._fitting(len(candidates), pace, how)
        for one in candidates:
            began, epochs = time.monotonic(), schedule.epochs * schedule.least(len(candidates))
            first = known[one, epochs] = self.run(one, epochs)
            if first is not None:
                beside = time.monotonic() - began - first.seconds
                pace = Pace(self._epoch, first.seconds / first.steps, max(0.0, beside))
                schedule = self._fitting(len(candidates), pace, how)
                break
        self._tell(len(candidates), pace, schedule, how)

        def run(one: _Candidate, effort: float) -> Trial | None:
            key = one, effort * schedule.epochs
            return known[key] if key in known else self.run(*key)

        return successive_halving(candidates, schedule.reduction, run, _rank)

    def _measure(self, candidates: Sequence[_Candidate]) -> None:
        """The steps of an epoch, and the part of a training in which the learning rate rises.

        Raises:
            ConfigError: That part is the whole training.
        """
        for one in candidates:
            planned = replace(self._config, variant=one.variant, start=one.start, epochs=1.0, warmup=0.0)
            try:
                self._epoch = plan_task(self._opened, _NAME, planned, self._init).steps
            except (ConfigError, IncompatibleError) as error:
                self._leave_out(one, error)
                continue
            steps = self._asked.max_steps or math.ceil(self._epoch * self._asked.epochs)
            check_warmup(steps, self._asked)
            self._warmup = warmup_steps(steps, self._asked.warmup) / steps
            return

    def _leave_out(self, one: _Candidate, error: LorabankError) -> None:
        self.left_out[str(one)] = error.message
        self.hint = self.hint or error.hint

    def _fitting(self, candidates: int, pace: Pace, how: AdviseConfig) -> Schedule:
        return fitted(candidates, how.reduction, pace, seconds=60 * how.minutes, most=self._config.epochs)

    def _tell(self, candidates: int, pace: Pace, schedule: Schedule, how: AdviseConfig) -> None:
        """Say which rounds there will be, how long they take, and what all epochs would take."""
        sizes, steps = round_sizes(candidates, schedule.reduction), pace.steps(schedule.epochs)
        if len(sizes) < len(round_sizes(candidates, how.reduction)):
            self._observer.notice(
                f"--minutes {how.minutes:g} is too little for several rounds of different length: each candidate is "
                f"trained once, for {steps} step{'s' * (steps > 1)}"
            )
        rounds = f"{candidates} candidates in rounds of {' and '.join(map(str, sizes))}"
        minutes = pace.seconds(sizes, schedule) / 60
        self._observer.notice(f"{rounds}, with up to {schedule.epochs:.2g} epochs, take about {minutes:.1f} min")
        if schedule.epochs < self._config.epochs:
            whole = Schedule(how.reduction, self._config.epochs)
            needed = math.ceil(pace.seconds(round_sizes(candidates, how.reduction), whole) / 60)
            self._observer.notice(f"--minutes {needed} would do for all {self._config.epochs:g} epochs")

    def run(self, one: _Candidate, epochs: float | None = None) -> Trial | None:
        """Train one candidate; None where it cannot be trained, with the reason in ``left_out``, or could not before.

        Args:
            one: The candidate.
            epochs: None for a few steps, which are not counted: the first training of a process also loads libraries,
                and memory stays with the process that later trainings use again.
        """
        if str(one) in self.left_out:
            return None
        warming, epochs = epochs is None, epochs or min(self._config.epochs, _WARM / self._epoch)
        # rounded down, so that every trial has a step at the whole rate
        warmup = float(int(self._warmup * math.ceil(self._epoch * epochs)))
        config = replace(self._config, variant=one.variant, start=one.start, epochs=epochs, warmup=warmup)
        with self._copy() as bank:
            try:
                plan = plan_task(OpenBank(bank), _NAME, config, self._init)
                if warming:
                    self._observer.notice(f"warming up with a few steps of {one}, which are not counted")
                else:
                    self._observer.notice(f"training {one}, {epochs:.2g} epochs")
                rate = float(plan.settings["learning_rate"]) * (_FASTER if one.faster else 1)
                memory = PeakMemory()
                added = add_task(
                    OpenBank(bank),
                    _NAME,
                    replace(config, learning_rate=rate),
                    init=self._init,
                    resume=False,
                    restart=False,
                    observer=_Bars(self._observer),
                )
            except LorabankError as error:
                self._leave_out(one, error)
                return None
        adapter, score = added.adapter, added.score
        self.metric, self.rows = score["metric"], int(score["n"])
        return Trial(
            variant=one.variant,
            start=one.start,
            learning_rate=rate,
            score=score["value"],
            low=score["low"],
            high=score["high"],
            epochs=epochs,
            steps=adapter.steps,
            seconds=adapter.wall_seconds,
            parameters=plan.trainable_parameters,
            bytes=adapter.bytes,
            memory=memory.added(),
            capacity_left=adapter.metrics.get("capacity_left"),
            overlap=max(adapter.metrics.get("overlap", {}).values(), default=None),
        )

    @contextmanager
    def _copy(self) -> Iterator[Path]:
        """A copy of the bank, deleted at the end; files in its folders never change and are linked."""
        bank = self._folder / "trial"

        def copied(source: str, target: str) -> None:
            (shutil.copy2 if Path(source).parent == self._past else os.link)(source, target)

        if self._past.exists():
            shutil.copytree(self._past, bank, copy_function=copied)
        try:
            yield bank
        finally:
            shutil.rmtree(bank, ignore_errors=True)


class _Bars(SilentObserver):
    """Passes the progress of a training on, and no notice: all candidates would give the same ones."""

    def __init__(self, observer: Observer) -> None:
        self.start, self.advance, self.finish = observer.start, observer.advance, observer.finish  # type: ignore[method-assign]


def _rank(trial: Trial) -> tuple[float, ...]:
    """The better score, and of equal ones fewer numbers and less time."""
    return trial.score, -trial.parameters, -trial.seconds


def _again(config: TrainConfig, init: InitConfig | None, best: Trial) -> Command:
    chosen = replace(config, variant=best.variant, start=best.start, learning_rate=best.learning_rate)
    return Command(*restart_command("NAME", chosen, restart=False), *(typed(init) if init else ()))


def _sweep() -> None:
    """Delete what calls left that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdecimal() and not Path("/proc", owner).exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)
