"""compare, eval against a baseline or a text, sequence tradeoff: what reaches the library, and what the user reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorabank.algebra.comparison import Angles, Comparison, ModuleComparison
from lorabank.evaluation.paired import Paired, PairedReport
from lorabank.evaluation.plots.tradeoff import Point
from lorabank.sequences.tradeoff import Tradeoff
from lorabank.workflows.results import CompareResult, GeneralSkills, HarnessScore, MatrixReport

TEST = Paired(0.0625, 0.02, 0.03, 0.1, 0.00002, "mcnemar", 80, 8, 3)
VALUES = [[None], [0.75]]


def report(**changes: Any) -> MatrixReport:
    made = MatrixReport("both", "manual", "given", ("spam",), VALUES, VALUES, VALUES, [80], {}, 0, 1, None, {})
    return replace(made, **changes)


@pytest.fixture
def evaluated(run: Callable[..., Any], api: Any) -> Callable[..., Any]:
    """``evaluated(report, words...)``: what eval writes."""

    def call(made: MatrixReport, *words: str) -> Any:
        api["check_gates"] = ()
        api["evaluate"] = (made,)
        return run("eval", *words)

    return call


def test_names_are_compositions(evaluated: Callable[..., Any], api: Any) -> None:
    assert evaluated(report(), "both", "as-trained", "--composition", "both", "--against", "x").code == 0
    config = api.called("evaluate")["config"]
    assert (config.compositions, config.against) == (("both", "as-trained"), "x")


def test_a_paired_test_is_a_line_of_a_table(evaluated: Callable[..., Any]) -> None:
    paired = PairedReport("as-trained", {"spam": 0.6875}, {"spam": TEST}, TEST)
    *_, head, line = evaluated(report(against=paired), "both", "--against", "as-trained").out.splitlines()
    assert head.split()[:4] == ["against", "as-trained", "as-trained", "difference"]
    assert line.split()[:3] == ["spam", "0.6875", "+0.0625"]
    assert line.split()[3:] == [
        *("0.0200", "+0.0300", "..", "+0.1000", "2e-05", "8", "3", "80", "McNemar's", "exact", "test"),
    ]


def test_general_skills_before_and_after(evaluated: Callable[..., Any]) -> None:
    skills = GeneralSkills(12.5, 14.25, replace(TEST, difference=-0.131), 900, 2)
    out = evaluated(report(general=skills), "--text", "held-out.txt").out
    assert "12.500 before any task, 14.250 now" in out
    assert "-0.1310 (+0.0300 .. +0.1000)" in out
    assert "80 pieces, 900 tokens, 2 pieces did not fit" in out


def test_tasks_of_the_harness_are_lines_of_a_table(evaluated: Callable[..., Any]) -> None:
    scores = (
        HarnessScore("arc_easy", "acc", 0.5, 0.625, 0.02, 0.03, True, 80, TEST),
        HarnessScore("prose", "byte_perplexity", 4.0, 4.5, None, None, False, None, None),
    )
    *_, head, one, other = evaluated(
        report(harness=scores), "--lm-eval", "arc_easy", "--lm-eval", "prose"
    ).out.splitlines()
    assert head.split()[:6] == ["general", "skills", "metric", "before", "any", "task"]
    assert one.split()[:6] == ["arc_easy", "acc", "0.5000", "±", "0.0200", "0.6250"]
    assert one.split()[-6:] == ["+0.1250", "+0.0300", "..", "+0.1000", "2e-05", "80"]
    assert other.split() == ["prose", "byte_perplexity", "(lower", "is", "better)", "4.0000", "4.5000", "+0.5000"]


@pytest.mark.parametrize("relation", ["same factors", "same delta weights", "different"])
def test_two_adapters(run: Callable[..., Any], api: Any, relation: Any) -> None:
    angles = Angles((0.5, 0.0), 0.125, 0.25)
    module = ModuleComparison(angles, Angles((), 0.0, 0.25), 1.5, -0.75, 1.0)
    details = Comparison({"layer.0.query": module}, 1.5, (1.0, 2.0), -0.75, 1.0)
    only: dict[str, tuple[str, ...]] = {"spam": ("m", "n"), "ham": ()}
    api["compare"] = CompareResult("spam", "ham", relation, -0.75, 0.125, 0.0, 0.25, 0.25, only, details)
    found = run("compare", "spam", "ham")
    assert {name: api.called("compare")[name] for name in ("one", "other")} == {"one": "spam", "other": "ham"}
    assert "1 in common, alone 2 of spam" in found.out
    assert "0.1250 (random spaces: 0.2500)" in found.out
    assert found.out.splitlines()[-1].split() == ["layer.0.query", "0.1250", "60.0°", "0.0000", "-0.7500"]
    assert ("can be removed" in found.out) == (relation == "same delta weights")
    assert run("compare", "spam", "ham", "--json").document["details"]["modules"]["layer.0.query"]["cosine"] == -0.75


def test_learning_against_forgetting(run: Callable[..., Any], api: Any, empty_folder: Path) -> None:
    api["tradeoff"] = Tradeoff((Point("olora", 0.8, 0.05, 0.01, 0.02), Point("ewc", 0.7, 0.06)), (0,))
    found = run("sequence", "tradeoff", "a", "b", "--plot", "points.svg")
    assert api.called("tradeoff") == {"folders": ("a", "b")}
    lines = [line.split() for line in found.out.splitlines()]
    assert lines[1] == ["olora", "0.8000", "±", "0.0100", "0.0500", "±", "0.0200", "*"]
    assert lines[2] == ["ewc", "0.7000", "0.0600"]
    assert (empty_folder / "points.svg").is_file()
    assert run("sequence", "tradeoff", "a", "--json").document["front"] == [0]
