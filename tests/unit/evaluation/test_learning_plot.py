"""The drawing of a training: its lines are the curve's numbers; how it looks is judged by eye."""

from __future__ import annotations

from pathlib import Path

from lorabank.evaluation.plots.learning import learning_plot
from lorabank.models.facts.curves import HeldOut, LearningCurve

HELD = HeldOut(9, 2, 3, (2, 4, 6), (0.5, 0.25, 0.375), (0.5, 1.0, 1.0), best=4, stopped=True)
CURVE = LearningCurve(2, (2, 4, 6), (0.75, 0.5, 0.125), (1e-3, 5e-4, 0.0), HELD)


def test_each_line_is_a_series_of_the_curve() -> None:
    loss, rate = learning_plot(CURVE, "spam").figure.axes
    drawn = {line.get_label(): (tuple(line.get_xdata()), tuple(line.get_ydata())) for line in loss.lines}
    assert drawn["training rows"] == (CURVE.steps, CURVE.losses)
    assert drawn["held-out rows"] == (HELD.steps, HELD.losses)
    (line,) = rate.lines
    assert (tuple(line.get_xdata()), tuple(line.get_ydata())) == (CURVE.steps, CURVE.learning_rates)
    assert [text.get_text() for text in loss.texts] == ["kept: step 4"]
    assert loss.get_ylim()[0] == rate.get_ylim()[0] == 0


def test_without_held_out_rows_there_is_one_line() -> None:
    alone = LearningCurve(1, (1,), (0.75,), (1e-3,))
    loss, _ = learning_plot(alone).figure.axes
    (line,) = loss.lines
    assert line.get_marker() == "o", "a line of one point is not seen"
    assert loss.get_legend() is None


def test_it_is_written_as_a_picture(tmp_path: Path) -> None:
    assert learning_plot(CURVE, "spam").save(tmp_path / "spam.png").read_bytes().startswith(b"\x89PNG")
