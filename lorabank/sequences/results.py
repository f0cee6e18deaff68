"""What a sequence returns: frozen, plain values that turn into JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lorabank.core.errors import ConfigError
from lorabank.core.showing import data_frame
from lorabank.sequences.references.base import NOT_STORABLE
from lorabank.workflows.results import MatrixReport

if TYPE_CHECKING:
    from lorabank.evaluation.plots.heatmap import Plot
    from lorabank.evaluation.plots.tradeoff import Point


_UNDRAWN = "nothing was drawn"


@dataclass(frozen=True)
class Interval:
    """A mean over runs.

    Attributes:
        half: Half of the 95 % t-interval; None of a single run.
    """

    mean: float
    half: float | None
    runs: int


@dataclass(frozen=True)
class OrderEffect:
    """How a score depends on the order of the tasks.

    Attributes:
        means: Order, from 1, to the mean over its seeds.
        spread: Standard deviation of these means, in which the chance of the seeds is too.
        due_to_order: Standard deviation that is due to the order alone; None where no order has two seeds.
    """

    means: dict[int, float]
    spread: float
    due_to_order: float | None


@dataclass(frozen=True)
class SequenceRow:
    """What one way to train and to answer reached, over all orders and seeds.

    Attributes:
        strategy: What trained the adapters.
        answers: The subject: ``"as-trained"`` or a composition.
        scalars: Metric to its mean; None where a score is missing. ``oracle`` and ``routing_accuracy`` (the share of
            rows that were routed to their task) are of routed subjects alone.
        tasks: Task to its score after the last task.
        judged: Scores of tasks with labels after the last task, over all runs.
        at_chance: How many of them are not clearly above the share of the most frequent label.
        orders: Metric to how it depends on the order; none with a single order.
    """

    strategy: str
    answers: str
    mode: str
    task_id: Literal["given", "routed"]
    runs: int
    scalars: dict[str, Interval | None]
    tasks: dict[str, Interval | None]
    judged: int = 0
    at_chance: int = 0
    orders: dict[str, OrderEffect] = field(default_factory=dict)

    @property
    def answered(self) -> str:
        """The subject, and of one that no bank can hold that it cannot."""
        return f"{self.answers} ({NOT_STORABLE})" if self.mode == NOT_STORABLE else self.answers

    @property
    def chance(self) -> str:
        """``3 of 12``; empty where every score is above chance."""
        return f"{self.at_chance} of {self.judged}" if self.at_chance else ""

    @property
    def point(self) -> Point | None:
        """What was learnt and what was forgotten; None where either is missing."""
        from lorabank.evaluation.plots.tradeoff import Point

        learnt, forgotten = self.scalars.get("learning_accuracy"), self.scalars.get("forgetting")
        if learnt is None or forgotten is None:
            return None
        name = f"{self.strategy}, {self.answered}"
        return Point(name, learnt.mean, forgotten.mean, learnt.half, forgotten.half)


@dataclass(frozen=True)
class SequenceRun:
    """The matrix of one subject in one bank of a sequence."""

    order: int
    strategy: str
    seed: int
    report: MatrixReport


@dataclass(frozen=True)
class SequenceCell:
    """One bank of a sequence, and what is left to do in it.

    Attributes:
        learnt: Tasks that are in the bank.
        to_learn: Tasks that are not.
        bank: Its folder; of a reference the one with its scores.
        interrupted: The task whose interrupted training is resumed.
        to_compose: Compositions that are not in the bank.
        scores: Stored scores.
    """

    order: int
    strategy: str
    seed: int
    bank: str
    learnt: tuple[str, ...]
    to_learn: tuple[str, ...]
    interrupted: str | None
    to_compose: tuple[str, ...]
    scores: int


@dataclass(frozen=True)
class SequencePlan:
    """What ``run_sequence`` would do.

    Attributes:
        steps: Optimizer steps that are left.
        card: The protocol card as far as it is known.
        card_lines: The same for people: name and value.
    """

    name: str
    folder: str
    cells: tuple[SequenceCell, ...]
    steps: int
    card: dict[str, Any]
    card_lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class SequenceResult:
    """A sequence's table under its protocol card.

    Attributes:
        card: Everything that a reader of the numbers must know.
        card_lines: The same for people: name and value.
        rows: The table.
        runs: Every matrix.
        paths: Files that were written.
        warning: Said where no score of the table is clearly above chance; else None.
    """

    name: str
    folder: str
    card: dict[str, Any]
    card_lines: tuple[tuple[str, str], ...]
    rows: tuple[SequenceRow, ...]
    runs: tuple[SequenceRun, ...]
    paths: tuple[str, ...]
    seconds: float
    warning: str | None = None

    def plot(self, scalar: str = "average_accuracy") -> Plot:
        """A scalar of every row of the table with its interval; a notebook shows it.

        Raises:
            ConfigError: No row has such a scalar.
        """
        from lorabank.evaluation.plots.intervals import interval_plot

        measured = {f"{row.strategy}, {row.answered}": row.scalars.get(scalar) for row in self.rows}
        means = {name: (one.mean, one.half) for name, one in measured.items() if one is not None}
        if not means:
            known = dict.fromkeys(name for row in self.rows for name, one in row.scalars.items() if one)
            message = f"no row of the table has {scalar!r}"
            raise ConfigError(message, hint=f"choose one of: {', '.join(known)}", unchanged=_UNDRAWN)
        return interval_plot(means, scalar.replace("_", " "))

    def tradeoff(self) -> Plot:
        """Learning against forgetting, a point for each row of the table that has both.

        Raises:
            ConfigError: No row has both.
        """
        from lorabank.evaluation.plots.tradeoff import tradeoff_plot

        points = [point for row in self.rows if (point := row.point)]
        if not points:
            message = "no row of the table says what was learnt and forgotten"
            raise ConfigError(message, hint="learn two tasks or more", unchanged=_UNDRAWN)
        return tradeoff_plot(points)

    def to_pandas(self) -> Any:
        """The table as a ``pandas.DataFrame``: a row for each way to train and to answer.

        Its columns are ``strategy``, ``answers``, ``mode``, ``task_id`` and ``runs``, then the mean of each scalar and
        of each task, beside each ``NAME.half``, half of its 95 % interval.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        columns: dict[str, list[Any]] = {
            name: [getattr(row, name) for row in self.rows]
            for name in ("strategy", "answers", "mode", "task_id", "runs")
        }
        for of in ("scalars", "tasks"):
            for name in dict.fromkeys(name for row in self.rows for name in getattr(row, of)):
                found = [getattr(row, of).get(name) for row in self.rows]
                columns[name] = [math.nan if one is None else one.mean for one in found]
                columns[f"{name}.half"] = [math.nan if one is None or one.half is None else one.half for one in found]
        return data_frame(columns)
