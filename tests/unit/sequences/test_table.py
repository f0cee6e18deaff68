"""Means over runs: an interval by hand and by printed quantiles, and a page whose numbers stand below the card."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from lorabank.core.records import EvaluationRecord
from lorabank.evaluation.confusion import label_detail, label_scores
from lorabank.sequences.clock import Clock, shown
from lorabank.sequences.results import SequenceRun
from lorabank.sequences.table import chance_warning, interval, markdown, table_rows
from lorabank.workflows.results import MatrixReport


# 0.975 quantiles of Student's t as tables print them: NIST/SEMATECH e-Handbook, section 1.3.6.7.2.
@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.706), (2, 4.303), (10, 2.228), (30, 2.042), (100, 1.984)])
def test_half_of_the_interval_by_a_printed_quantile(degrees: int, quantile: float) -> None:
    runs = [0.0, *[0.5] * (degrees - 1), 1.0]  # squares of the distances from the mean add up to one half
    found = interval(runs)
    assert found is not None
    assert found.half == pytest.approx(quantile * math.sqrt(0.5 / degrees / (degrees + 1)), rel=2e-4)


def test_interval_by_hand() -> None:
    # mean 0.6, sample standard deviation 0.1, three runs: 4.3027 * 0.1 / sqrt(3)
    found = interval([0.5, 0.6, 0.7])
    assert found is not None
    assert (found.mean, found.runs) == (pytest.approx(0.6), 3)
    assert found.half == pytest.approx(0.248416, abs=1e-5)


def test_one_run_has_no_interval_and_a_missing_score_no_mean() -> None:
    single = interval([0.5])
    assert single is not None
    assert (single.mean, single.half, single.runs) == (0.5, None, 1)
    assert interval([0.5, None]) is None
    assert interval([0.5, float("nan")]) is None
    assert interval([]) is None


def run(order: int, seed: int, subject: str, last: list[float], tasks: tuple[str, ...]) -> SequenceRun:
    routed = subject != "as-trained"
    scalars: dict[str, float | None] = {
        "average_accuracy": sum(last) / 2,
        "learning_accuracy": 0.5,
        "backward_transfer": -0.1 * seed,
        "forgetting": 0.1 * seed,
        "forward_transfer": None,
    }
    facts: dict[str, Any] = {"settings": {}, "routing": {"oracle": 0.9, "accuracy": 0.7} if routed else None}
    values = [[None, None], [last[0], None], last]
    report = MatrixReport(
        subject,
        subject,
        "routed" if routed else "given",
        tasks,
        values,
        values,
        values,
        [1, 1],
        scalars,
        0,
        0,
        **facts,
    )
    return SequenceRun(order, "olora", seed, report)


def test_rows_are_means_over_orders_and_seeds() -> None:
    runs = [
        run(1, 0, "as-trained", [0.2, 0.4], ("a", "b")),
        run(1, 0, "routed", [0.1, 0.1], ("a", "b")),
        run(2, 1, "as-trained", [0.8, 0.6], ("b", "a")),
        run(2, 1, "routed", [0.1, 0.1], ("b", "a")),
    ]
    as_trained, routed = table_rows(runs)
    assert (as_trained.answers, as_trained.runs, as_trained.task_id) == ("as-trained", 2, "given")
    average = as_trained.scalars["average_accuracy"]
    assert average is not None
    assert average.mean == pytest.approx(0.5)
    assert average.half == pytest.approx(12.7062 * 0.2 * 2**0.5 / 2**0.5, abs=1e-4)
    assert as_trained.scalars["forward_transfer"] is None
    assert as_trained.scalars["oracle"] is None
    by_task = {task: value.mean for task, value in as_trained.tasks.items() if value}
    assert by_task == {"a": pytest.approx(0.4), "b": pytest.approx(0.6)}, "tasks by name, not by place"
    assert routed.task_id == "routed"
    assert routed.scalars["routing_accuracy"] is not None
    assert routed.scalars["routing_accuracy"].mean == pytest.approx(0.7)


def judged(one: SequenceRun, low: float) -> SequenceRun:
    """The run, its task ``a`` judged by 20 rows of which half have one label; its interval begins at ``low``."""
    detail = {"labels": label_detail(["x", "y"] * 10, ["x"] * 20)}
    cell = EvaluationRecord("k", "s", 2, "a", "accuracy", low + 0.1, 20, low, low + 0.2, "given", {}, detail)
    scores = label_scores(cell, ("x", "y"))
    assert scores is not None
    return replace(one, report=replace(one.report, labels={"a": scores}))


def test_scores_at_chance_are_counted_and_said_loudly_where_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabank.sequences.table.card_lines", lambda card: [])
    tasks = ("a", "b")
    one, other = run(1, 0, "as-trained", [0.5, 0.5], tasks), run(1, 1, "as-trained", [0.5, 0.5], tasks)
    for lows, count, loud in (((0.45, 0.3), 2, True), ((0.45, 0.51), 1, False), ((0.6, 0.7), 0, False)):
        rows = table_rows([judged(one, lows[0]), judged(other, lows[1])])
        assert (rows[0].judged, rows[0].at_chance) == (2, count)
        page = markdown("name", {}, rows)
        assert ((chance_warning(rows) or "none") in page) is loud
        assert page.count("EVERY RUN IS AT CHANCE") == loud
        assert (f"not clearly above chance: olora, as-trained: {count} of 2." in page) is (count > 0)
    assert chance_warning(table_rows([one, other])) is None, "nothing was judged"


def test_time_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [shown(seconds) for seconds in (3.2, 89, 90, 720, 8280)] == ["3 s", "89 s", "2 min", "12 min", "2.3 h"]
    now = [100.0]
    monkeypatch.setattr("lorabank.sequences.clock.time.monotonic", lambda: now[0])
    clock = Clock([{"a": 10.0, "b": 20.0}, {"a": 30.0}])
    assert clock.left() == ""
    clock.skip(30.0)
    assert clock.left() == "", "what was done before says nothing about the pace"
    now[0] += 60
    clock.done(10.0)
    assert clock.left() == " (about 2 min left)"
