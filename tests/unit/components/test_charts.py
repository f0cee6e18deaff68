"""Charts: where lines lie, what is written beside them, and that their values stand in a table."""

from __future__ import annotations

import re

import pytest

from lorabank.components.charts import Axes, Line, line_chart
from lorabank.components.frame import stylesheet
from lorabank.components.ticks import as_text, ticks
from tests.unit.components.page import Page

NAN = float("nan")
AXES = Axes("tasks learnt", "accuracy", 0.0, 1.0)


def places(path: str | None) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path or "")]


def paths(page: Page, kind: str) -> list[str | None]:
    return [one["d"] for one in page.all("path") if (one["class"] or "").startswith(kind)]


def test_a_line_goes_through_its_points() -> None:
    html = line_chart([Line("a", [1, 2, 3], [0.0, 0.5, 1.0])], AXES, caption="Average")
    page = Page(html)
    (bottom, middle, top) = places(paths(page, "line")[0])
    assert middle == pytest.approx([(bottom[0] + top[0]) / 2, (bottom[1] + top[1]) / 2], abs=0.1)
    heights = {name: float(y) for y, name in re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)<', html)}
    assert heights["0.0"] - bottom[1] == pytest.approx(heights["1.0"] - top[1])
    assert list(heights) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert {"1", "2", "3"} <= set(page.texts)


def test_a_gap_is_not_drawn_over() -> None:
    page = Page(line_chart([Line("a", [1, 2, 3, 4], [0.1, NAN, 0.3, 0.4])], AXES, caption="c"))
    assert re.sub(r"[\d. ]", "", paths(page, "line")[0] or "") == "MML"
    assert page.texts[page.texts.index("The values of this chart") :][-8:] == [
        "1",
        "0.1",
        "2",
        "–",
        "3",
        "0.3",
        "4",
        "0.4",
    ]


def test_a_band_lies_around_its_line() -> None:
    line = Line("a", [1, 2], [0.5, 0.6], [0.4, 0.5], [0.6, 0.7])
    page = Page(line_chart([line], AXES, caption="c"))
    high, low = places(paths(page, "line")[0]), places(paths(page, "band")[0])
    first, second, back, begin = low
    assert first[1] < high[0][1] < begin[1]
    assert second[1] < high[1][1] < back[1]
    assert "0.6 [0.5, 0.7]" in page.texts


def test_faint_lines_are_not_in_the_legend_but_in_the_table() -> None:
    lines = [Line("bold", [1, 2], [0.1, 0.2]), Line("grey", [1, 2], [0.3, 0.4], faint=True)]
    html = line_chart(lines, AXES, caption="c")
    legend = Page(re.findall(r"<ul.*?</ul>", html)[0]).texts
    assert legend == ["bold"]
    texts = Page(re.findall(r"<details.*?</details>", html)[0]).texts
    assert texts == [
        "The values of this chart",
        "c",
        "tasks learnt",
        "bold",
        "grey",
        "1",
        "0.1",
        "0.3",
        "2",
        "0.2",
        "0.4",
    ]
    assert "<details" not in line_chart(lines, AXES, caption="c", listed=False)


def test_names_of_places_are_short_enough_to_be_read() -> None:
    names = {k: f"a task with a long name {k}" for k in range(1, 51)}
    line = Line("a", list(names), [0.5] * 50)
    html = line_chart([line], Axes("after learning", "accuracy", 0, 1, places=names), caption="c")
    below = re.findall(r'text-anchor="middle">(a task[^<]*)<', html)
    assert 2 <= len(below) <= 5
    assert max(map(len, below)) <= 14


def test_lines_that_share_a_colour_differ_in_their_dashes() -> None:
    lines = [Line(f"line {k}", [1, 2], [0.1, 0.2]) for k in range(16)]
    page = Page(line_chart(lines, AXES, caption="c"))
    looks = [name for name in page.classes("g") if name]
    drawn, legend = looks[:16], looks[16:]
    assert legend == drawn
    assert len(set(drawn)) == 16
    css = stylesheet()
    for dashes in ("dash1", "dash2"):
        assert any(dashes in look for look in drawn)
        assert f"svg .{dashes} .line {{ stroke-dasharray" in css


def test_words_for_who_does_not_see_it_and_no_ids() -> None:
    html = line_chart([Line("<i>", [1, 2], [0, 1])], AXES, caption="Average <b>", told="From 0 to 1")
    page = Page(html)
    assert page.all("svg")[0]["aria-label"] == "Average <b>. From 0 to 1"
    assert not any("id" in attributes for _, attributes in page.tags)
    assert not any(tag in {"i", "b"} for tag, _ in page.tags)


@pytest.mark.parametrize(
    ("low", "high", "most", "wanted"),
    [
        (0, 1, 6, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (1, 4, 7, [1, 1.5, 2, 2.5, 3, 3.5, 4]),
        (0.31, 0.47, 6, [0.35, 0.4, 0.45]),
        (0, 4800, 6, [0, 1000, 2000, 3000, 4000]),
        (5, 5, 6, [5]),
    ],
)
def test_ticks_are_round(low: float, high: float, most: int, wanted: list[float]) -> None:
    found = ticks(low, high, most)
    assert found == pytest.approx(wanted)
    assert len(found) <= most


def test_ticks_have_the_decimals_they_need() -> None:
    assert as_text([0, 0.5, 1]) == ["0.0", "0.5", "1.0"]
    assert as_text([1, 2]) == ["1", "2"]
    assert as_text([0, 0.0001, 0.0002]) == ["0", "0.0001", "0.0002"]
    assert as_text([-0.25, -0.0, 0.25]) == ["-0.25", "0.00", "0.25"]
