"""Learning against forgetting: the rows of a sequence's table, of several sequences, or of banks, as points."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabank.bank.bank import Bank
from lorabank.bank.failures import reported
from lorabank.core.commands import Command
from lorabank.core.errors import DamagedError, NotFoundError
from lorabank.evaluation.plots.heatmap import Plot
from lorabank.evaluation.plots.tradeoff import Point, pareto_front, tradeoff_plot
from lorabank.sequences.folder import check_once
from lorabank.sequences.results import Interval, SequenceRow
from lorabank.workflows.publish import stored_reports

LEARNT, FORGOTTEN = "learning_accuracy", "forgetting"


@dataclass(frozen=True)
class Tradeoff:
    """Learning against forgetting of several results.

    Attributes:
        points: One for each way to train and to answer.
        front: Places among them that no other point beats.
    """

    points: tuple[Point, ...]
    front: tuple[int, ...]

    def plot(self) -> Plot:
        """The points; ``plot().save("tradeoff.png")`` writes them."""
        return tradeoff_plot(self.points)


def tradeoff(folders: Sequence[str | Path]) -> Tradeoff:
    """The points of the folders of sequences, from their ``results.json``, and of banks, from their stored matrices.

    Raises:
        ConfigError: A folder is named twice.
        NotFoundError: A folder is neither, or nothing in the folders was measured after every stage.
        DamagedError: A ``results.json`` cannot be read.
    """
    check_once([Path(folder) for folder in folders])
    points: list[Point] = []
    for folder in map(Path, folders):
        name = f"{folder.absolute().name}: " if len(folders) > 1 else ""
        points += [point._replace(name=name + point.name) for point in _points_in(folder)]
    if not points:
        raise NotFoundError(
            f"no matrix in {', '.join(map(str, folders))} says what was learnt and forgotten",
            hint="measure every stage of two tasks or more",
            commands=[Command("eval", "--forgetting-matrix")],
            unchanged="nothing was written",
        )
    return Tradeoff(tuple(points), pareto_front(points))


def _points_in(folder: Path) -> Iterator[Point]:
    results = folder / "results.json"
    if results.is_file():
        yield from (point for row in _rows(results) if (point := row.point))
    elif Bank.exists(folder):
        bank = Bank.open(folder)
        for report in stored_reports(bank, bank.snapshot()):
            learnt, forgotten = report.scalars[LEARNT], report.scalars[FORGOTTEN]
            if learnt is not None and forgotten is not None:
                yield Point(report.subject, learnt, forgotten)
    else:
        raise NotFoundError(
            f"{folder} is neither the folder of a sequence with results nor a bank",
            hint="name the folder that sequence run writes to",
            unchanged="nothing was written",
        )


def _rows(results: Path) -> list[SequenceRow]:
    """The rows of the table that a sequence wrote, with the scalars alone."""
    with reported(results):
        text = results.read_text(encoding="utf-8")
    try:
        return [_row(row) for row in json.loads(text)["rows"]]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedError(
            f"{results} cannot be read ({error})", hint="the same sequence run writes it again"
        ) from error


def _row(row: Any) -> SequenceRow:
    scalars = {
        name: Interval(**row["scalars"][name]) if row["scalars"][name] else None for name in (LEARNT, FORGOTTEN)
    }
    for one in scalars.values():
        if one and not all(isinstance(value, float | int | None) for value in (one.mean, one.half)):
            raise TypeError("a score is not a number")
    return SequenceRow(str(row["strategy"]), str(row["answers"]), "", "given", 0, scalars, {})
