"""A report as a picture and as a data frame."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from lorabank.core.errors import MissingExtraError
from lorabank.sequences.results import Interval, SequenceResult, SequenceRow
from lorabank.workflows.results import MatrixReport


@pytest.fixture
def report() -> MatrixReport:
    return MatrixReport(
        subject="mixed",
        mode="manual",
        task_id="given",
        tasks=("first", "<b>$x$"),
        values=[[None, None], [0.9, None], [0.7, 0.8]],
        low=[[None, None], [0.8, None], [0.6, 0.7]],
        high=[[None, None], [0.95, None], [0.8, 0.9]],
        counts=[20, 30],
        scalars={},
        computed=3,
        cached=0,
        routing=None,
        settings={},
    )


@pytest.fixture
def table() -> SequenceResult:
    def row(strategy: str, mean: float, half: float | None, forward: Interval | None) -> SequenceRow:
        scalars = {"average_accuracy": Interval(mean, half, 3), "forward_transfer": forward}
        return SequenceRow(strategy, "as-trained", "as-trained", "given", 3, scalars, {"spam": Interval(0.5, 0.1, 3)})

    rows = (row("olora", 0.84, 0.02, None), row("seqlora", 0.71, None, Interval(0.1, 0.05, 3)))
    return SequenceResult("demo", "folder", {}, (), rows, (), (), 1.0)


def words(svg: str) -> set[str]:
    """matplotlib draws text as shapes and names it in a comment."""
    ElementTree.fromstring(svg)
    return set(re.findall(r"<!-- (.*?) -->", svg))


def test_a_matrix_is_drawn_shown_and_saved(report, tmp_path: Path) -> None:
    plot = report.plot()
    shown = plot._repr_svg_()
    assert {"0.900", "0.700", "0.800", "first", "after 1 first", "mixed (manual)"} <= words(shown)
    assert plot.save(tmp_path / "m.svg").read_text(encoding="utf-8") == shown
    assert plot.save(tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    plot.figure.axes[0].set_title("a title of mine")
    assert "a title of mine" in words(plot._repr_svg_())


def test_a_table_is_drawn_with_the_intervals_of_one_scalar(table) -> None:
    assert {"olora, as-trained", "seqlora, as-trained", "0.840", "0.710", "average accuracy"} <= words(
        table.plot()._repr_svg_()
    )
    found = words(table.plot("forward_transfer")._repr_svg_())
    assert "0.100" in found
    assert "olora, as-trained" not in found
    with pytest.raises(Exception, match=r"'forgetting'") as caught:
        table.plot("forgetting")
    assert caught.value.hint == "choose one of: average_accuracy, forward_transfer"


@pytest.fixture
def pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    """pandas, or where it is not installed what takes the same arguments."""
    try:
        import pandas  # noqa: F401
    except ImportError:
        stand_in: Any = SimpleNamespace(
            Index=lambda values, name: SimpleNamespace(tolist=lambda: values, name=name), DataFrame=_Frame
        )
        monkeypatch.setitem(sys.modules, "pandas", stand_in)


class _Frame:
    def __init__(self, columns: dict[str, list[Any]], index: Any = None) -> None:
        self.columns, self.index = list(columns), index
        self._columns = columns

    def __getitem__(self, column: str) -> Any:
        return SimpleNamespace(tolist=lambda: self._columns[column])


@pytest.mark.usefixtures("pandas")
def test_a_matrix_as_a_data_frame(report) -> None:
    frame = report.to_pandas()
    assert (list(frame.columns), frame.index.tolist(), frame.index.name) == (
        ["first", "<b>$x$"],
        ["base", "first", "<b>$x$"],
        "after",
    )
    nan = float("nan")
    assert frame["first"].tolist() == pytest.approx([nan, 0.9, 0.7], nan_ok=True)
    assert frame["<b>$x$"].tolist() == pytest.approx([nan, nan, 0.8], nan_ok=True)


@pytest.mark.usefixtures("pandas")
def test_a_table_as_a_data_frame(table) -> None:
    frame, nan = table.to_pandas(), float("nan")
    assert frame["strategy"].tolist() == ["olora", "seqlora"]
    assert frame["runs"].tolist() == [3, 3]
    expected = {
        "average_accuracy": [0.84, 0.71],
        "average_accuracy.half": [0.02, nan],
        "forward_transfer": [nan, 0.1],
        "forward_transfer.half": [nan, 0.05],
        "spam": [0.5, 0.5],
        "spam.half": [0.1, 0.1],
    }
    for column, values in expected.items():
        assert frame[column].tolist() == pytest.approx(values, nan_ok=True)
    assert list(frame.columns) == ["strategy", "answers", "mode", "task_id", "runs", *expected]


def test_without_pandas_the_error_says_what_to_install(report, table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for result in (report, table):
        with pytest.raises(MissingExtraError, match="pandas, which is not installed") as caught:
            result.to_pandas()
        assert caught.value.hint == 'pip install "pandas>=2.2.2"'
