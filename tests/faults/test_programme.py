"""The harnesses of the fault programme are alive: a few tries of each in the sound code, and one mutant each.

The whole programme is ``python -m tests.faults push`` (CONTRIBUTING.md).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.mutants import MUTANTS
from tests.faults.outcome import Outcome
from tests.faults.processes import in_a_fork
from tests.faults.programme import HARNESSES

COUNTS = {"F1": 3, "F2": 7, "F5": 1, "F6": 3, "F7": 3, "F8": 1, "F9": 8, "F10": 2}
"""Those that need no torch."""

BY_NAME = {harness.name: harness for harness in HARNESSES}


@pytest.mark.parametrize("name", COUNTS)
def test_a_few_tries_find_nothing(name: str) -> None:
    outcome: Outcome = in_a_fork(lambda: BY_NAME[name].run(COUNTS[name], seed=3))
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert outcome.examples == []
    assert outcome.tries > 0


@pytest.mark.parametrize(
    ("mutant", "name", "count"),
    [
        ("rows before files", "F6", 40),
        ("foreign keys off", "F10", 0),
        ("rows are not compared with their digest", "F9", 40),
        ("errors of the disk are not translated", "F7", 14),
        ("no busy timeout", "F8", 4),
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


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_fits_the_code(mutant: object) -> None:
    """A mutant whose text is no longer there would be caught by nothing and blamed on the harness."""
    assert in_a_fork(mutant.apply) is None  # type: ignore[attr-defined]


def test_the_command_writes_its_findings_down(tmp_path: Path) -> None:
    words = ["push", "--only", "F13", "--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *words, "--without-mutants"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert "F13" in done.stdout
    assert '"level": "push"' in (tmp_path / "a.json").read_text()
    assert "| F13 |" in (tmp_path / "a.md").read_text()
