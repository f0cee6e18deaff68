"""Filling a matrix: what is computed, and when it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest

from lorabank.core.observer import SilentObserver
from lorabank.core.records import EvaluationRecord, TaskRecord
from lorabank.data.rows import Rows
from lorabank.evaluation import run
from lorabank.evaluation.run import Filled, fill_cells, wanted_cells
from lorabank.evaluation.scoring import ACCURACY, Said

TASKS = [TaskRecord(name, number, "SEQ_CLS", ("a", "b"), "ready") for number, name in enumerate(("x", "y", "z"), 1)]
ROWS = Rows(("t", "u"), ("a", "b"), columns=("text", "label"), source="here", lines=(1, 2))


class Kept(dict[str, EvaluationRecord]):
    """The bank's scores, and how many cells came together."""

    def __init__(self) -> None:
        super().__init__()
        self.together: list[int] = []

    def keep(self, records: Sequence[EvaluationRecord]) -> None:
        self.together.append(len(records))
        self.update((record.key, record) for record in records)

    def stored(self, keys: Sequence[str]) -> dict[str, EvaluationRecord]:
        return {key: self[key] for key in keys if key in self}


class Answering:
    """Right in the first row; gives up at one of its answers."""

    name, mode, task_id = "as-trained", "as-trained", "given"

    def __init__(self, fails_at: int = 0, error: type[BaseException] = KeyboardInterrupt) -> None:
        self._fails_at, self._error = fails_at, error
        self.asked = 0

    def identity(self, stage: int, task: TaskRecord) -> tuple[str, ...]:
        return (f'"sum",null,[{stage}]', f'"{task.name}"')

    def answer(self, stage: int, task: TaskRecord, rows: Rows) -> Said:
        self.asked += 1
        if self.asked == self._fails_at:
            raise self._error
        return Said(("a", "a"), ())


def fill(subject: Answering, kept: Kept) -> Filled:
    names = [task.name for task in TASKS]
    return fill_cells(
        subject,  # type: ignore[arg-type]
        wanted_cells(TASKS, matrix=True, forward=False),
        base="0" * 64,
        data=dict.fromkeys(names, "1" * 64),
        rows=lambda name: ROWS,
        metrics=dict.fromkeys(names, ACCURACY),
        settings={"batch_size": 2},
        stored=kept.stored,
        keep=kept.keep,
        prepare=lambda: None,
        computed_with={},
        observer=SilentObserver(),
    )


def test_the_new_cells_of_a_stage_are_stored_together() -> None:
    kept, subject = Kept(), Answering()
    filled = fill(subject, kept)
    assert (filled.computed, filled.cached, kept.together) == (6, 0, [1, 2, 3])
    assert {record.value for record in filled.records} == {0.5}
    again = fill(subject, kept)
    assert (again.computed, again.cached, subject.asked, kept.together) == (0, 6, 6, [1, 2, 3])
    assert again.records == filled.records


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_run_loses_the_cell_that_it_was_at(error: type[BaseException]) -> None:
    kept = Kept()
    with pytest.raises(error):
        fill(Answering(6, error), kept)
    assert kept.together == [1, 2, 2]
    assert fill(Answering(), kept).computed == 1


def test_cells_that_take_long_are_stored_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count(step=31)
    monkeypatch.setattr(run.time, "monotonic", lambda: float(next(ticks)))
    kept = Kept()
    fill(Answering(), kept)
    assert kept.together == [1] * 6


def test_what_cannot_be_stored_is_told_once() -> None:
    """And not tried again when the run ends for it."""

    def refuse(records: Sequence[EvaluationRecord]) -> None:
        tried.append(len(records))
        raise OSError("no space")

    tried: list[int] = []
    kept = Kept()
    kept.keep = refuse  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no space"):
        fill(Answering(), kept)
    assert tried == [1]
