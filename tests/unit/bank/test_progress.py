"""The file in which a training says how far it is: what is written, how often, and what a reader makes of it."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lorabank.bank import progress
from lorabank.bank.progress import FILE, Follower, Progress, ProgressFile, read_progress, steps_of
from lorabank.core.errors import DataError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """``clock[0]`` is the time in seconds."""
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def write(file: ProgressFile, step: int, of: int = 100, loss: float = 0.5, **terms: float) -> None:
    file.step(step, of, epoch=step / 10, learning_rate=1e-3, terms={"loss": loss, **terms})


def facts(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / FILE).read_text().splitlines()]


def test_a_whole_training_in_lines(tmp_path: Path, clock: list[float]) -> None:
    with ProgressFile(tmp_path) as file:
        file.begin(0, 100)
        clock[0] += 5
        write(file, 10, loss=0.75, orthogonal=2.0)
        file.phase(progress.STORING)
        file.phase(progress.SCORING)
    loading, begun, step, *others = facts(tmp_path)
    assert [line["phase"] for line in (loading, *others)] == ["loading", "storing", "scoring", "done"]
    assert {key: begun[key] for key in begun if key != "time"} == {"phase": "training", "step": 0, "of": 100}
    assert {key: step[key] for key in step if key != "time"} == {
        "phase": "training", "step": 10, "of": 100, "epoch": 1.0, "loss": 0.75, "penalties": {"orthogonal": 2.0},
        "learning_rate": 1e-3, "seconds_left": 45.0,
    }  # fmt: skip
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_resumed_training_estimates_by_its_own_pace(tmp_path: Path, clock: list[float]) -> None:
    with ProgressFile(tmp_path) as file:
        file.begin(50, 100)
        clock[0] += 10
        write(file, 60)
    assert facts(tmp_path)[2]["seconds_left"] == 40.0


def test_there_is_at_most_a_line_a_second_and_few_in_all(tmp_path: Path, clock: list[float]) -> None:
    file, written = ProgressFile(tmp_path), []
    file.begin(0, 10**6)
    for step in range(1, 200_000):  # ten steps a second, for five and a half hours
        clock[0] += 0.1
        if file.due:
            write(file, step, of=10**6)
            written.append(clock[0])
    apart = [later - earlier for earlier, later in pairwise(written)]
    assert min(apart) > 0.99
    assert max(apart) < 0.001 * 20_000 + 0.2
    assert len(written) < 5000


@pytest.mark.parametrize(
    ("error", "phase", "said"),
    [
        (KeyboardInterrupt(), "stopped", "interrupted"),
        (DataError("rows.jsonl, line 3:\nno text"), "failed", "rows.jsonl, line 3: no text"),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
    ],
)
def test_the_last_line_says_how_it_ended(tmp_path: Path, error: BaseException, phase: str, said: str) -> None:
    with pytest.raises(type(error)), ProgressFile(tmp_path):
        raise error
    assert (facts(tmp_path)[-1]["phase"], facts(tmp_path)[-1]["error"]) == (phase, said)
    assert read_progress(tmp_path)[-1].ended


def test_a_line_that_a_kill_cut_off_is_passed_over(tmp_path: Path) -> None:
    with ProgressFile(tmp_path) as file:
        file.begin(0, 10)
    with (tmp_path / FILE).open("ab") as end:
        end.write(b'{"phase": "training", "step": 3, "lo')
    assert [line.phase for line in read_progress(tmp_path)] == ["loading", "training", "done"]
    with ProgressFile(tmp_path):
        pass
    assert [line.phase for line in read_progress(tmp_path)] == ["loading", "training", "done", "loading", "done"]


def test_a_reader_follows_the_file_and_sees_its_end_after_it_was_deleted(tmp_path: Path) -> None:
    with Follower(tmp_path / FILE) as follower:
        assert follower.new() == []
        with ProgressFile(tmp_path) as file:
            assert [line.phase for line in follower.new()] == ["loading"]
            assert follower.new() == []
            os.write(file._descriptor, b'{"phase": "tra')  # a line in two halves
            assert follower.new() == []
            os.write(file._descriptor, b'ining", "step": 4}\n')
            assert [(line.phase, line.step) for line in follower.new()] == [("training", 4)]
            (tmp_path / FILE).unlink()
        assert [line.phase for line in follower.new()] == ["done"]


@pytest.mark.parametrize(
    "line",
    [
        b"", b"[]", b"7", b"{", b'{"phase": "dancing"}', b'{"phase": ["done"]}', b"\xff\xfe", b"[" * 100_000,
        b'{"phase": NaN}', b'{"step": 3}',
    ],
)  # fmt: skip
def test_what_is_no_line_of_ours_is_none(line: bytes) -> None:
    assert Progress.parse(line) is None


def test_values_of_other_kinds_are_not_known() -> None:
    odd = {"phase": "training", "step": True, "of": -1, "loss": "low", "epoch": 1e999, "penalties": {"a": 1, "b": []}}
    found = Progress.parse(json.dumps(odd).encode())
    assert found == Progress("", "training", penalties={"a": 1.0})
    assert found.facts() == {"time": "", "phase": "training", "penalties": {"a": 1.0}}


def test_numbers_that_are_not_finite_are_left_out_of_the_file(tmp_path: Path) -> None:
    with ProgressFile(tmp_path) as file:
        file.begin(0, 10)
        write(file, 1, loss=float("nan"), orthogonal=float("inf"))
    line = facts(tmp_path)[2]
    assert (line["loss"], line["penalties"]) == (None, {"orthogonal": None})
    assert b"NaN" not in (tmp_path / FILE).read_bytes()


def test_steps_after_the_checkpoint_of_a_resumed_training_count_once() -> None:
    def line(step: int, loss: float | None) -> Progress:
        return Progress("", "training", step=step, of=9, loss=loss)

    lines = [line(0, None), line(1, 0.9), line(2, 0.8), line(5, 0.5), Progress("", "stopped"), line(2, None)]
    assert [(one.step, one.loss) for one in steps_of(lines)] == [(1, 0.9), (2, 0.8)]
    assert [one.step for one in steps_of([*lines, line(3, 0.7)])] == [1, 2, 3]
    assert [(one.step, one.loss) for one in steps_of([*lines, line(2, 0.6)])] == [(1, 0.9), (2, 0.6)]


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / FILE).symlink_to(tmp_path / "elsewhere")
    with ProgressFile(tmp_path) as file:
        file.begin(0, 10)
        assert not file.due
        write(file, 1)
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert read_progress(tmp_path) == []
    (tmp_path / FILE).unlink()
    with ProgressFile(tmp_path) as file:
        monkeypatch.setattr(progress.os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        file.begin(0, 10)
        write(file, 1)
    assert [line.phase for line in read_progress(tmp_path)] == ["loading"]
