"""Heat-maps and CSV; how the plots look is judged by eye, here stands what can be checked."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from lorabank.core.errors import ConfigError
from lorabank.evaluation.matrix import ScoreMatrix
from lorabank.evaluation.plots.heatmap import heatmap, write_csv

NAN = float("nan")
MATRIX = ScoreMatrix(
    ("sentiment", "spam"), np.array([[NAN, NAN], [0.8125, NAN], [1 / 3, 0.0]]), counts=np.array([240, 240])
)


def test_png(tmp_path: Path) -> None:
    import matplotlib.image

    path = heatmap(MATRIX, "a title").save(tmp_path / "matrix.png")
    picture = matplotlib.image.imread(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    colours = {tuple(np.round(pixel, 2)) for pixel in picture[:, :, :3].reshape(-1, 3)}
    # viridis at 1/3 and 0, as its authors publish it
    for colour in ((0.19, 0.41, 0.56), (0.27, 0.0, 0.33)):
        assert any(np.allclose(colour, c, atol=0.015) for c in colours)


def test_svg_holds_every_measured_cell_and_no_other(tmp_path: Path) -> None:
    path = heatmap(MATRIX, "olora <&> $x$").save(tmp_path / "matrix.SVG")
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    # matplotlib draws glyphs and leaves the text in comments
    for label in ("0.812", "0.333", "0.000", "sentiment", "spam", "after 1 sentiment", "after 2 spam"):
        assert f"<!-- {label} -->" in path.read_text(encoding="utf-8")
    assert "<!-- base -->" not in path.read_text(encoding="utf-8")
    assert "nan" not in path.read_text(encoding="utf-8")


def test_other_suffixes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"matrix\.jpg"):
        heatmap(MATRIX).save(tmp_path / "matrix.jpg")
    assert list(tmp_path.iterdir()) == []


def test_csv_keeps_every_digit_and_leaves_missing_cells_empty(tmp_path: Path) -> None:
    path = write_csv(MATRIX, tmp_path / "matrix.csv")
    assert path.read_text(encoding="utf-8") == (
        "after,sentiment,spam\nbase,,\nsentiment,0.8125,\nspam,0.3333333333333333,0.0\n"
    )


def test_csv_cells_are_no_formulas(tmp_path: Path) -> None:
    tasks = ("=cmd()", "+1", "-1", "@x")
    path = write_csv(ScoreMatrix(tasks, np.full((5, 4), 0.5), np.ones(4)), tmp_path / "matrix.csv")
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["after", "'=cmd()", "'+1", "'-1", "'@x"]
    assert [row[0] for row in rows] == ["base", "'=cmd()", "'+1", "'-1", "'@x"]
