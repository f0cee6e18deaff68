"""The score of each task over the stages: what is drawn, and where names stand."""

from __future__ import annotations

import numpy as np
import pytest

from lorabank.evaluation.matrix import ScoreMatrix
from lorabank.evaluation.plots.lines import apart
from lorabank.evaluation.plots.tasks import lost, task_plot

NAN = float("nan")
MATRIX = ScoreMatrix(
    ("a", "b", "c"),
    np.array([[0.5, 0.5, 0.5], [0.9, NAN, NAN], [NAN, 0.8, NAN], [0.6, 0.85, 0.7]]),
    counts=np.full(3, 240),
)


def test_what_each_task_lost_by_hand() -> None:
    """From the first score at its own stage to the last; a task with a single score has no line."""
    assert lost(MATRIX) == {"a": pytest.approx(0.3), "b": pytest.approx(-0.05)}


def test_every_line_has_its_name_and_last_score(tmp_path) -> None:
    figure = task_plot(MATRIX, "as-trained").figure
    (axes,) = figure.axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert drawn == [([1, 3], [0.9, 0.6]), ([2, 3], [0.8, 0.85]), ([3], [0.7])]
    assert [text.get_text() for text in axes.texts] == ["a 0.600", "b 0.850", "c 0.700"]


def test_of_many_tasks_the_seven_that_lost_most_are_named() -> None:
    values = np.full((21, 20), NAN)
    for j in range(20):
        values[j + 1 :, j] = 0.9 - 0.01 * j * np.arange(20 - j)
    figure = task_plot(ScoreMatrix(tuple(f"t{j}" for j in range(20)), values, np.ones(20))).figure
    losses = {f"t{j}": 0.01 * j * (19 - j) for j in range(20)}
    worst = set(sorted(losses, key=lambda task: -losses[task])[:7])
    assert {text.get_text().split()[0] for text in figure.axes[0].texts} == worst
    assert len(figure.axes[0].lines) == 20


def test_places_are_moved_apart_around_their_mean() -> None:
    assert apart([0.5, 0.5, 0.9], least=0.1) == pytest.approx([0.45, 0.55, 0.9])
    assert apart([0.9, 0.1], least=0.1) == [0.9, 0.1]
    assert apart([1.0, 1.0, 1.0], least=0.1) == pytest.approx([0.8, 0.9, 1.0])
    assert apart([0.0, 0.02], least=0.1) == pytest.approx([0.0, 0.1])
    close = sorted(apart(np.linspace(0.4, 0.5, 7).tolist(), least=0.062))
    assert np.diff(close) == pytest.approx(0.062)
