"""Label words and prompt templates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabank.core.errors import ConfigError, DataError
from lorabank.core.templates import DEFAULT_TEMPLATE, check_template, fill_labels, fill_text
from lorabank.data.forms.labels import label_list, label_words
from lorabank.data.rows import Rows


def test_words_come_in_the_order_of_the_labels() -> None:
    assert label_words(" 1 = positive ,0=negative", ("0", "1")) == {"0": "negative", "1": "positive"}
    assert list(label_words("1=b,0=a", ("0", "1"))) == ["0", "1"]


@given(
    st.dictionaries(st.text("abc 01", min_size=1).map(str.strip).filter(bool), st.integers(), min_size=1, max_size=6)
)
def test_every_label_gets_the_word_that_was_given(numbers: dict[str, int]) -> None:
    words = {label: f"word {index}" for index, label in enumerate(numbers)}
    setting = ",".join(f"{label}={word}" for label, word in reversed(words.items()))
    assert label_words(setting, tuple(numbers)) == words


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("0=negative", "no word for the label '1'"),
        ("0=a,1=b,2=c", "the data have no label '2'"),
        ("0=a,1=a", "the labels '0' and '1' have the same word, 'a'"),
        ("0=a,1=b,0=c", "the label '0' has two words"),
        ("0=a,1=", "'1=' is not label=word (the word is empty)"),
        ("0=a,1", "'1' is not label=word"),
        ("", "'' is not label=word"),
        ("0=a,1=b\x00", "a NUL character at position 2"),
        ("0=a,1=" + "b" * 257, "the word has 257 characters; 256 is the limit"),
    ],
)
def test_words_that_do_not_fit_the_labels_are_refused(setting: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        label_words(setting, ("0", "1"))
    assert problem in caught.value.message
    assert "--set label_words=0=negative,1=positive" in (caught.value.hint or "")


def test_an_unknown_label_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'spam'"):
        label_words("ham=no,spma=yes", ("ham", "spam"))


def test_a_completion_that_is_too_long_for_a_label_names_its_line() -> None:
    rows = Rows(("a", "b"), ("x" * 256, "y" * 257), "f.csv", ("prompt", "completion"), (2, 3), "line")
    with pytest.raises(DataError, match=r"'f\.csv', line 3, column 'completion': the label has 257 characters"):
        label_list(rows)


# ---------------------------------------------------------------------------------------------------------- templates


@pytest.mark.parametrize("template", [DEFAULT_TEMPLATE, "{text}", '{"a": {text}, "label": {labels}}', "{x} {text} {}"])
def test_templates_may_hold_other_braces(template: str) -> None:
    check_template(template)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("", "has no {text}"),
        ("What is it?", "has no {text}"),
        ("{text} and {text}", "has {text} more than once"),
        ("{ text }", "no slot '{ text }'. Did you mean '{text}'?"),
        ("{Text}", "no slot '{Text}'. Did you mean '{text}'?"),
        ("{text}: {label}", "no slot '{label}'. Did you mean '{labels}'?"),
        ("{text}\x00", "a NUL character at position 7"),
    ],
)
def test_a_template_that_cannot_work_is_refused(template: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_template(template)
    assert problem in caught.value.message
    assert caught.value.unchanged == "nothing was changed"


@given(text=st.text("ab{}labels text\n"), labels=st.lists(st.sampled_from("xyz"), min_size=1))
def test_what_stands_in_a_text_is_not_taken_for_a_slot(text: str, labels: list[str]) -> None:
    filled = fill_labels('{"t": {text}, "o": [{labels}]}', labels)
    assert fill_text(filled, text) == '{"t": ' + text + ', "o": [' + ", ".join(labels) + "]}"
