"""Tables that are pictures: what stands in the cells, in which colour, and that the text on it can be read."""

from __future__ import annotations

import re

import pytest
from matplotlib import colormaps

from lorabank.components.colours import LEVELS, colour_at, contrast, hexadecimal, level, scale_rules
from lorabank.components.frame import Ids, stylesheet
from lorabank.components.markup import element
from lorabank.components.tables import bar, count_table, score_table
from tests.unit.components.page import Page

NAN = float("nan")


def test_the_scale_is_viridis() -> None:
    viridis = colormaps["viridis"]
    for step in range(LEVELS + 1):
        found, wanted = colour_at(step / LEVELS), viridis(step / LEVELS)[:3]
        assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < 0.03, step


def parts(colour: str) -> tuple[float, float, float]:
    whole = "".join(2 * c for c in colour[1:]) if len(colour) == 4 else colour[1:]
    red, green, blue = (int(whole[k : k + 2], 16) / 255 for k in (0, 2, 4))
    return red, green, blue


def test_contrast_is_that_of_the_guidelines() -> None:
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast(parts("#777777"), parts("#ffffff")) == pytest.approx(4.48, abs=0.01)  # known of WCAG's examples


def test_every_text_can_be_read_on_its_colour() -> None:
    rules = re.findall(r"\.v\d+ \{ background: (#\w+); color: (#\w+); \}", scale_rules())
    assert len(rules) == LEVELS + 1
    assert min(contrast(parts(back), parts(ink)) for back, ink in rules) >= 4.5
    css = stylesheet()
    blocks = re.findall(r":root \{(.*?)\}", css, re.S)
    assert len(blocks) == 3, "light, dark and print"
    for block in blocks:
        colours = dict(re.findall(r"--(\w+): (#\w+)", block))
        for ink in ("ink", "grey", "link", "warn"):
            assert contrast(parts(colours[ink]), parts(colours["paper"])) >= 4.5, (ink, colours["paper"])
        for line in ("line", *(f"s{k}" for k in range(7))):
            assert contrast(parts(colours[line]), parts(colours["paper"])) >= 3, (line, colours["paper"])


def test_scores_stand_in_their_colours() -> None:
    html = score_table(
        ["base", "after 1 a", "after 2 b"], ["a", "b"], [[None, NAN], [0.9, 0.1], [0.5, 1.0]],
        caption="Scores", corner="after ↓ on →", learnt=[0, 1, 2],
        low=[[None, None], [0.8, 0.0], [0.4, 0.9]], high=[[None, None], [0.95, 0.3], [0.6, 1.0]],
    )  # fmt: skip
    page = Page(html)
    assert page.texts == [
        "Scores", "after ↓ on →", "a", "b", "base", "–", "–", "after 1 a", "0.900", "0.100",
        "after 2 b", "0.500", "1.000",
    ]  # fmt: skip
    assert page.classes("td") == ["none", "none", "v45 known", "v5", "v25 known", "v50 known"]
    assert page.all("td")[3]["title"] == "0.1000, 95 % interval 0.000 to 0.300"
    assert [one["scope"] for one in page.all("th")] == ["col"] * 3 + ["row"] * 3


def test_many_tasks_are_numbers_of_per_cent() -> None:
    names = [f"task {k}" for k in range(15)]
    page = Page(score_table(["base"], names, [[k / 14 for k in range(15)]], caption="Scores"))
    assert page.texts[0] == "Scores, in per cent"
    assert page.texts[1:16] == [str(k) for k in range(1, 16)]
    assert [one["title"] for one in page.all("abbr")] == names
    assert page.texts[17:] == [str(round(100 * k / 14)) for k in range(15)]
    assert page.all("td")[1]["title"] == "0.0714"


def test_confusion_is_coloured_by_the_share_of_the_row() -> None:
    html = count_table(
        ["x", "y"], ["x", "y", "other"], [[9, 1, 0], [0, 0, 4]], caption="c", corner="w", ends=[0.9, None]
    )
    page = Page(html)
    assert page.texts == ["c", "w", "x", "y", "other", "right", "x", "9", "1", "0", "0.900", "y", "0", "0", "4", "–"]
    assert page.classes("td") == ["v45 known", "v5", "none", "n", "none", "none known", "v50", "n"]


def test_a_bar_ends_at_its_value() -> None:
    page = Page(bar(0.75, 0.5, 1.0))
    assert page.all("rect") == [{"x": "0", "y": "4", "width": "90", "height": "8", "class": "bar"}]
    assert page.all("path")[0]["d"] == "M60.0 8H120.0M60.0 5v6M120.0 5v6"
    negative = Page(bar(-0.25, least=-0.5, most=0.5))
    assert negative.all("rect")[0] == {"x": "30", "y": "4", "width": "30", "height": "8", "class": "bar"}
    assert negative.all("line")[0]["x1"] == "60", "where 0 is"
    assert bar(None) == ""
    assert bar(NAN) == ""


def test_text_is_escaped_and_seen() -> None:
    html = element("p", "<b>\u202e\x1b&\n", title='"><i>\u200b', class_=None, aria_label="x")
    assert html == '<p title="&#34;&gt;&lt;i&gt;\\u200b" aria-label="x">&lt;b&gt;\\u202e\\x1b&amp;\n</p>'


def test_levels_are_cut_at_both_ends() -> None:
    assert [level(value) for value in (-3, 0, 0.011, 0.5, 1, 7, NAN)] == [
        "v0",
        "v0",
        "v1",
        "v25",
        "v50",
        "v50",
        "none",
    ]
    assert hexadecimal((0, 0.5, 1)) == "#0080ff"


def test_ids_are_unique_whatever_the_names() -> None:
    ids = Ids()
    assert [ids(name) for name in ("Spam!", "spam", "", "\u202e", "9 lives", "spam-2", "spam")] == [
        "spam", "spam-2", "part", "part-2", "part-9-lives", "spam-2-2", "spam-3",
    ]  # fmt: skip
