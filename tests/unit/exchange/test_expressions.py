"""Expressions of strangers match as Python's do, and never for ever."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabank.exchange.expressions import Expression, Unreadable

LAYERS = [f"model.layers.{i}.{rest}" for i in (0, 1, 12) for rest in ("self_attn.q_proj", "mlp.down_proj", "q_proj")]
NAMES = ["", "q", "query", "lm_head", "model.vision.layers.1.self_attn.q_proj", "a" * 40 + "b", *LAYERS]

ATOMS = st.sampled_from(
    ["a", "b", ".", r"\.", r"\d", r"\w", r"\W", "[ab]", "[^.]", "[a-c_]", "q_proj", "1", "^", "$", r"\b", "]", "{}"]
)  # fmt: skip
QUANTITIES = st.sampled_from(["", "*", "+", "?", "*?", "+?", "{2}", "{1,}", "{0,2}", "{,1}", "{2,3}?"])
PARTS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, QUANTITIES).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        st.lists(inner, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda found: f"({'|'.join(found)})"),
        inner.map(lambda part: f"(?={part})"),
        inner.map(lambda part: f"(?!{part})"),
        inner.map(lambda part: f"(?P<g>{part})"),
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(PARTS, st.text("ab.1q_", max_size=9))
def test_it_matches_where_python_does(text, name) -> None:
    try:
        pattern = re.compile(text)
    except re.error:  # a name of a group used twice
        return
    for probe in (name, *LAYERS[:3]):
        assert Expression(text).matches(probe) == bool(pattern.fullmatch(probe)), (text, probe)
        ends = bool(re.match(rf"(.*\.)?({text})$", probe)) if "P<g>" not in text else None
        assert ends is None or Expression(text).ends(probe) == ends, (text, probe)


@pytest.mark.parametrize(
    "text",
    [
        r".*\.layer\.1\.attention\.self\.(query|value)",
        r"model\.layers\.(0|1)\.(self_attn|mlp)\.(q_proj|down_proj)",
        r"^(?!.*vision).*(?:q_proj|down_proj)$",
        r"(?:.*?(?:language|text|model).*?(?:self_attn|mlp).*?(?:q_proj|k_proj|down_proj).*?)",
        r"model\.layers\.(?:[0-9]|1[0-2])\..*_proj",
        r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|down_proj)))",
    ],
)
def test_what_people_write(text) -> None:
    expression, pattern = Expression(text), re.compile(text)
    assert [expression.matches(name) for name in NAMES] == [bool(pattern.fullmatch(name)) for name in NAMES]
    assert any(expression.matches(name) for name in [*NAMES, "bert.encoder.layer.1.attention.self.query"])


@pytest.mark.parametrize("text", ["(a+)+$", "((a*)*)*b", "(a|a)*b", "(a?){40}a{40}", "(.*.*.*.*.*)*!", "(?=(a+)+c)a*"])
def test_what_never_ends_in_python_ends_here(text) -> None:
    assert Expression(text).matches("a" * 40 + "!") is text.endswith("!")


@pytest.mark.parametrize(
    "text",
    [
        "(", ")", "a)", "[a", "*a", "a**", "a{3}{2}", "a++", "(?<=a)b", "(?<!a)b", "(?i)a", r"(a)\1", "(?P=x)",
        "(?P<1>a)", "a{3,2}", "a|*", "\\", r"\x41", "(?#a)", "[b-a]", "[[a]]", "(" * 200 + ")" * 200, "a" * 5000,
    ],
)  # fmt: skip
def test_what_is_not_taken_is_said(text) -> None:
    with pytest.raises(Unreadable):
        Expression(text)


def test_all_names_together_have_a_bound() -> None:
    expression = Expression("(?:a|b|c|q)*(?:a|b|c|q)*!")
    matched = 0

    def many() -> None:
        nonlocal matched
        for _ in range(100_000):
            matched += expression.matches("abcq" * 25)

    with pytest.raises(Unreadable, match="takes too long"):
        many()
    assert matched == 0
