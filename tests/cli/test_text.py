"""What may reach a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lorabank_cli.render.text import fit, outline, pairs, size, table, width

from lorabank.core.escaping import safe


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain text, Grüße, 日本語", "plain text, Grüße, 日本語"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
        ("over\rwrite\n", "over\\x0dwrite\\x0a"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("abc\u202edcba", "abc\\u202edcba"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("line\u2028sep", "line\\u2028sep"),
        ("lone \udc80", "lone \\udc80"),
        ("tag\U000e0041", "tag\\U000e0041"),
    ],
)
def test_safe_shows_what_would_move_hide_or_reorder_text(raw: str, shown: str) -> None:
    assert safe(raw) == shown


@given(st.text())
def test_safe_text_is_printable_in_every_terminal(text: str) -> None:
    shown = safe(text)
    shown.encode("utf-8")
    # Unicode's own classes: controls, format characters, surrogates, line and paragraph separators.
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_table_aligns_text_left_and_numbers_right() -> None:
    shown = table(("task", "rows"), [("spam", 5), ("sentiment", 480)])
    assert shown.splitlines() == [
        "task       rows",
        "spam          5",
        "sentiment   480",
    ]


def test_table_keeps_columns_under_wide_and_hostile_names() -> None:
    lines = table(("name", "x"), [("日本", "a"), ("\x1b[2J", "b")]).splitlines()
    assert lines[1] == "日本     a"  # 4 columns of text, 3 to the 7 of the other name, 2 of gap
    assert lines[2] == "\\x1b[2J  b"


def test_a_table_too_wide_is_cut_and_says_where_the_rest_is() -> None:
    lines = table(("name", "text"), [("spam", "x" * 100)], limit=30).splitlines()
    assert all(width(line) <= 30 for line in lines[:2])
    assert lines[1].endswith("~")
    assert "--json" in lines[-1]


def test_fit_never_splits_a_wide_character() -> None:
    assert fit("日本語", 4) == "日~ "
    assert width(fit("日本語", 4)) == 4


def test_pairs_leave_out_what_is_not_known() -> None:
    assert pairs([("a", 1), ("long name", None), ("bc", 0.5)], indent="") == "a   1\nbc  0.5000"


def test_outline_shows_nested_documents() -> None:
    shown = outline(
        {"name": "spam", "labels": ["ham", "spam"], "adapter": {"r": 8}, "rows": [{"split": "eval", "n": 3}]}
    )
    assert shown.splitlines() == [
        "  name    spam",
        "  labels  ham, spam",
        "  adapter",
        "    r  8",
        "  rows",
        "    split  n",
        "    eval   3",
    ]


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (3_100_000, "3.1 MB")]
)
def test_sizes_are_decimal(count: int, shown: str) -> None:
    assert size(count) == shown
