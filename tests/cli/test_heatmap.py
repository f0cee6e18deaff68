"""The matrix in a terminal: a colour for each value, plain numbers without colour."""

from __future__ import annotations

import re
from typing import Any

import pytest
from lorabank_cli.render.heatmap import cube, heatmap, shade

TASKS = ("sentiment", "spam")
VALUES = [[None, None], [1.0, None], [0.0, 0.5]]


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_colour_changes_nothing_but_the_colour() -> None:
    assert _plain(heatmap(TASKS, VALUES, color=True)) == heatmap(TASKS, VALUES, color=False)
    assert "\x1b" not in heatmap(TASKS, VALUES, color=False)


def test_ends_and_middle_of_the_scale_are_viridis() -> None:
    # The scale's published colours at 0, 1/4, 1/2 and 1: #440154, #3b528b, #21918c, #fde725.
    assert shade(0.0) == (0x44, 0x01, 0x54)
    assert shade(0.5) == (0x21, 0x91, 0x8C)
    assert shade(1.0) == (0xFD, 0xE7, 0x25)
    assert shade(-1.0) == shade(0.0)
    assert shade(2.0) == shade(1.0)
    assert shade(0.25) == (0x3B, 0x52, 0x8B)
    assert shade(0.75) == (94, 201, 98)
    assert shade(0.875) == (174, 216, 68)  # halfway between (94, 201, 98) and (253, 231, 37), ties to even


@pytest.mark.parametrize(
    ("rgb", "number"), [((0, 0, 0), 16), ((255, 255, 255), 231), ((255, 0, 0), 196), ((0, 95, 135), 24)]
)
def test_256_colours(rgb: tuple[int, int, int], number: int) -> None:
    assert cube(rgb) == number


def test_truecolor_where_the_terminal_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "48;5;" in heatmap(TASKS, VALUES, color=True)
    monkeypatch.setenv("COLORTERM", "truecolor")
    colored = heatmap(TASKS, VALUES, color=True)
    assert "48;2;253;231;37" in colored
    assert "48;5;" not in colored


def test_missing_cells_stay_empty_and_rows_without_any_are_left_out() -> None:
    lines = heatmap(TASKS, VALUES, color=False).splitlines()
    assert [line.split() for line in lines[1:]] == [["1", "sentiment", "1.0000"], ["2", "spam", "0.0000", "0.5000"]]
    with_base = heatmap(TASKS, [[0.5, None], *VALUES[1:]], color=False).splitlines()
    assert with_base[1].split() == ["0", "(base)", "0.5000"]


def test_names_give_way_to_numbers_in_a_narrow_terminal() -> None:
    tasks = [f"a-rather-long-name-{i}" for i in range(4)]
    values = [[None] * 4, *[[0.5] * 4] * 4]
    lines = heatmap(tasks, values, color=False, limit=60).splitlines()
    assert lines[0].split()[3:] == ["1", "2", "3", "4"]
    assert all(len(line) <= 60 for line in lines)
    assert lines[4].startswith("4 a-rather-long-name-3")


@pytest.mark.parametrize(
    ("streams", "no_color", "term", "colored"),
    [
        (("stdout",), None, "xterm", True),
        (("stdout",), "1", "xterm", False),
        ((), None, "xterm", False),
        (("stdout",), None, "dumb", False),
    ],
)
def test_colour_on_a_terminal_only(
    run: Any,
    api: Any,
    terminal: Any,
    monkeypatch: pytest.MonkeyPatch,
    streams: Any,
    no_color: Any,
    term: str,
    colored: bool,
) -> None:
    from lorabank.workflows.results import MatrixReport

    nothing = [[None, None]] * 3
    api["evaluate"] = (
        MatrixReport("as-trained", "olora", "given", TASKS, VALUES, nothing, nothing, [1, 1], {}, 0, 0, None, {}),
    )
    api["check_gates"] = ()
    terminal(*streams)
    monkeypatch.setenv("TERM", term)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    assert ("\x1b[" in run("eval").out) is colored
