"""Short versions of the fuzzing; the runner gives it the hours."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from lorabank.core.errors import DataError
from lorabank.core.machine.packages import install
from tests.faults import fuzz
from tests.faults.fuzz_targets import TARGETS

INSTALLED = importlib.util.find_spec("atheris") is not None


def check(result: dict[str, Any], count: int) -> None:
    assert (result["uncaught"], result["examples"]) == (0, [])
    assert result["tries"] >= count


def test_mutated_headers() -> None:
    check(fuzz.headers(10_000, seed=1), 10_000)


@pytest.mark.parametrize("kind", [fuzz.jsonl, fuzz.configs, fuzz.names, fuzz.manifests])
def test_generated_input(kind) -> None:
    check(kind(150, seed=1), 100)  # hypothesis may run out of new names


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason=f"atheris is not installed: {install('fuzz')}")
@pytest.mark.parametrize("target", TARGETS)
def test_input_that_coverage_leads_to(target) -> None:
    check(fuzz.atheris(target, 5000, seed=1), 5000)


def test_without_atheris_it_says_why_nothing_was_tried(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = fuzz.atheris("header", 10)
    assert (result["tries"], result["skipped"]) == (0, f"atheris is not installed: {install('fuzz')}")


def test_what_is_slow_once_is_no_finding(monkeypatch) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 0.01)
    pauses = iter([3_000_000, 0, 3_000_000, 3_000_000])
    tally = fuzz.Tally(lambda data: sum(range(next(pauses))))
    tally.feed(b"x")
    assert (tally.tries, tally.uncaught) == (1, 0)
    tally.feed(b"x")
    assert (tally.tries, tally.uncaught) == (2, 1)


@pytest.mark.parametrize(
    ("does", "finding"),
    [
        (lambda data: 1 / 0, "ZeroDivisionError"),
        (lambda data: sum(range(3_000_000)), "over a second"),
        (lambda data: (_ for _ in ()).throw(DataError("two\nlines")), "not one line"),
    ],
)
def test_what_must_not_be_is_found(monkeypatch, does, finding) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 0.01)
    tally = fuzz.Tally(does)
    tally.feed(b"x")
    assert tally.uncaught >= 1
    assert any(finding in example for example in tally.examples)
