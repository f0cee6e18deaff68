"""Trainings that the page starts: one at a time, cancelled like Ctrl-C, and told by what they wrote."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorabank.core.commands import Command
from lorabank.page.jobs.queue import Job, Jobs
from lorabank.serving.config import TOKEN

PROGRAM = """
import os, sys, time
words = sys.argv[1:]
print("words", words, "token", os.environ.get("LORABANK_TOKEN"), "group", os.getpgid(0) == os.getpid(), flush=True)
if "wait" in words:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("error: interrupted\\n  hint: resume it", flush=True)
        sys.exit(130)
if "fail" in words:
    sys.exit("notice\\nerror: rows.jsonl, line 3: no text\\n  nothing was changed")
if "busy" in words and not os.path.exists(words[-1]):
    open(words[-1], "w").close()
    sys.exit(9)
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    made = Jobs(tmp_path / "bank", (sys.executable, str(program)), tmp_path / "said")
    yield made
    for job in made.all():
        made.cancel(job.name)
    until(lambda: not any(job.under_way for job in made.all()))


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def add(jobs: Jobs, name: str, *words: str) -> Job:
    job = jobs.add(name, Command("add-task", name, *words))
    assert job is not None
    return job


def ended(job: Job) -> Job:
    until(lambda: not job.under_way)
    return job


def test_a_training_is_the_command_of_the_command_line(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "secret")
    job = ended(add(jobs, "one", "--data", "a b;$(touch no).jsonl"))
    words = ["-b", str(tmp_path / "bank"), "add-task", "one", "--data", "a b;$(touch no).jsonl"]
    assert job.state == "done"
    assert job.said() == f"words {words} token None group True"
    assert job.error() == ""
    assert job.log.stat().st_mode & 0o777 == 0o600


def test_one_at_a_time_in_the_order_in_which_they_were_asked_for(jobs: Jobs) -> None:
    first, second, third = add(jobs, "one", "wait"), add(jobs, "two"), add(jobs, "three")
    until(lambda: "words" in first.said())
    time.sleep(0.2)
    assert [job.state for job in jobs.all()] == ["running", "waiting", "waiting"]
    assert jobs.add("two", Command("add-task", "two")) is None
    assert jobs.cancel("two")
    assert second.state == "stopped"
    assert jobs.cancel("one")
    assert ended(first).state == "stopped"
    assert ended(third).state == "done"
    assert second.said() == ""
    assert not jobs.cancel("one")
    assert not jobs.cancel("nine")


def test_a_cancelled_training_gets_the_signal_of_ctrl_c(jobs: Jobs) -> None:
    job = add(jobs, "one", "wait")
    until(lambda: "words" in job.said())
    jobs.cancel("one")
    assert ended(job).error() == "interrupted\n  hint: resume it"


def test_a_failed_training_shows_its_error(jobs: Jobs) -> None:
    job = ended(add(jobs, "one", "fail"))
    assert job.state == "failed"
    assert job.error() == "rows.jsonl, line 3: no text\n  nothing was changed"


def test_a_killed_training_has_failed(jobs: Jobs) -> None:
    job = add(jobs, "one", "wait")
    until(lambda: "words" in job.said())
    assert job.process is not None
    os.kill(job.process.pid, signal.SIGKILL)
    assert ended(job).state == "failed"


def test_a_bank_that_another_process_took_first_is_waited_for(jobs: Jobs, tmp_path: Path) -> None:
    job = ended(add(jobs, "one", "busy", str(tmp_path / "second time")))
    assert job.state == "done"


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "bank", (str(tmp_path / "nothing"),), tmp_path / "said")
    job = ended(add(jobs, "one"))
    assert job.state == "failed"
    assert "cannot be started" in job.error()


def test_a_bank_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    job = ended(add(Jobs(tmp_path / "bank", (sys.executable,), tmp_path / "file" / "said"), "one"))
    assert job.state == "failed"
    assert "cannot be started: [Errno 20]" in job.error()


@pytest.mark.parametrize("word", ["-b", "--bank", "--help"])
def test_no_word_of_a_form_chooses_another_bank(jobs: Jobs, tmp_path: Path, word: str) -> None:
    said = ended(add(jobs, "one", "--text-column", word)).said()
    assert f"words {['-b', str(tmp_path / 'bank'), 'add-task', 'one', '--text-column', word]}" in said


def test_an_ended_training_makes_room_for_the_next_of_its_name(jobs: Jobs) -> None:
    first = ended(add(jobs, "one", "fail"))
    second = ended(add(jobs, "one"))
    assert (second.state, jobs.all()) == ("done", [second])
    assert not first.log.exists()


def test_what_earlier_trainings_wrote_is_kept_of_the_newest_hundred_files(jobs: Jobs, tmp_path: Path) -> None:
    said = tmp_path / "said"
    said.mkdir()
    for number in range(120):
        (said / f"{number:03}.log").write_text("of an earlier server")
        os.utime(said / f"{number:03}.log", (number, number))
    (said / "notes.txt").write_text("of the operator")
    job = ended(add(jobs, "one"))
    kept = sorted(path.name for path in said.glob("*.log") if path != job.log)
    assert kept == [f"{number:03}.log" for number in range(21, 120)]
    assert job.said().startswith("words")
    assert (said / "notes.txt").exists()


def test_what_a_remembered_training_wrote_stays_however_old_it_is(jobs: Jobs, tmp_path: Path) -> None:
    first = ended(add(jobs, "one"))
    os.utime(first.log, (1, 1))
    for number in range(120):
        (tmp_path / "said" / f"{number:03}.log").write_text("of another server")
    second = ended(add(jobs, "two"))
    assert first.said().startswith("words")
    assert second.said().startswith("words")
    assert len(list((tmp_path / "said").glob("*.log"))) == 100
