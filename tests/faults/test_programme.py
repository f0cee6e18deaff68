"""The harnesses of the fault programme are alive: a few tries of each in the sound code, and one mutant each.

The whole programme is ``python -m tests.faults push`` (CONTRIBUTING.md).
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.faults.mutants import MUTANTS
from tests.faults.outcome import Outcome
from tests.faults.power_cut import acknowledged
from tests.faults.processes import in_a_fork
from tests.faults.programme import HARNESSES, Catch, Result
from tests.faults.report import Report
from tests.faults.upkeep import UPKEEP
from tests.faults.workload import COMMANDS

COUNTS = {"F1": 3, "F2": 7, "F5": 1, "F6": 3, "F7": 3, "F8": 1, "F9": 8, "F10": 2, "F18": 6, "F19": 12, "F20": 1}
"""Those that need no torch."""

pytestmark = pytest.mark.usefixtures("_templates")

BY_NAME = {harness.name: harness for harness in HARNESSES}


@pytest.fixture(scope="module")
def _templates() -> None:
    """Made once, and inherited by the forks."""
    for command in (*COMMANDS, *UPKEEP):
        command.start()


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_a_few_tries_find_nothing(name: str) -> None:
    outcome: Outcome = in_a_fork(lambda: BY_NAME[name].run(COUNTS[name], seed=3))
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert outcome.examples == []
    assert outcome.tries > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutant", "name", "count"),
    [
        ("rows before files", "F6", 20),
        ("foreign keys off", "F10", 0),
        ("verify does not hash", "F9", 4),
        ("errors of the disk are not translated", "F7", 21),
        ("no busy timeout", "F8", 4),
        ("a restore keeps nothing", "F18", 6),
        ("copies are numbered by the clock alone", "F19", 12),
        ("a journal that names another file is played back", "F20", 8),
        ("a schema is compared by its names", "F20", 8),
        ("rows are taken as they are", "F20", 10),
    ],
)
def test_a_mutant_is_caught(mutant: str, name: str, count: int) -> None:
    chosen = next(one for one in MUTANTS if one.name == mutant)

    def spoil() -> Outcome:
        chosen.apply()
        return BY_NAME[name].run(count, seed=3)

    outcome: Outcome = in_a_fork(spoil)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert outcome.findings > 0


def test_every_harness_is_there() -> None:
    """One was not, for a while, and its line said that it had been left out."""
    assert in_a_fork(lambda: all(callable(harness._function()) for harness in HARNESSES))


def test_a_harness_that_is_not_there_is_a_finding() -> None:
    assert replace(HARNESSES[0], where="random_kills:walk").run(1, seed=3).findings == 1


def test_what_is_said_while_the_power_goes_is_not_acknowledged() -> None:
    said = ["begin add a at=1", "done add a at=9", "begin remove b at=10", "done remove b at=12", "begin gc at=13"]
    heard = ["begin add a", "done add a", "begin remove b"]
    assert acknowledged(said, 11) == heard
    assert acknowledged([*said[:3], "error StorageError 10: x"], 11) == [*heard, "error StorageError 10: x"]


def test_a_report_says_what_was_found_and_what_was_missed() -> None:
    result = Result("F1", "kills", Outcome(tries=1000, lost=1, examples=["lost: a task"]), 12.0)
    missed, left = Catch(MUTANTS[0], None, "F1: 40 tries", 1.0), Catch(MUTANTS[1], None, "F5: skipped", 1.0)
    report = Report("push", 20, [result], [missed, left], datetime(2026, 1, 2, tzinfo=UTC))
    page = report.markdown().splitlines()
    assert page[2].startswith("2026-01-02, ")
    assert page[2].endswith(": 1 findings, 1 of 2 mutants missed.")
    assert "| F1 | kills | 1,000 | 1 | 0 | 0 | 12 |" in page
    assert f"| {MUTANTS[0].name} | NOT CAUGHT | F1: 40 tries | 1 |" in page
    assert json.loads(report.as_json())["results"][0]["outcome"]["lost"] == 1


def test_a_share_is_a_part_of_each_count_and_never_nothing() -> None:
    for harness in HARNESSES:
        whole, quarter = harness.size("push", 1), harness.size("push", 4)
        assert whole == harness.sizes[0]
        assert quarter is None or (0 < quarter <= 400 if whole is None else whole / 4 <= quarter < whole / 4 + 1)
    assert {harness.name for harness in HARNESSES if harness.size("push", 4) is None} == {"F13"}


def test_every_mutant_fits_the_code() -> None:
    """A mutant whose text is no longer there would be caught by nothing, and its harness blamed."""
    assert len(MUTANTS) >= 12
    assert in_a_fork(lambda: [mutant.mutated().__name__ for mutant in MUTANTS])
    assert {harness for mutant in MUTANTS for harness in mutant.caught_by} >= {*COUNTS, "F3", "F4", "F16", "F17"}


@pytest.mark.slow
def test_the_command_writes_its_findings_down(tmp_path: Path) -> None:
    words = ["push", "--only", "F13", "--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *words, "--without-mutants"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert "F13" in done.stdout
    assert '"level": "push"' in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "| F13 |" in (tmp_path / "a.md").read_text(encoding="utf-8")
