"""How a language model's task is asked, by the record of its adapter: of this version and of all before."""

from __future__ import annotations

from typing import Any

import pytest

from lorabank.core.errors import ConfigError
from lorabank.core.methods import changed_settings, values_of
from lorabank.core.shelves import SCORINGS
from lorabank.data.methods import in_chat_template, of_training, recorded_scoring, without_format


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({}, 50),
        ({"max_new_tokens": 50, "chat_template": "auto", "label_words": None}, 50),
        ({"max_new_tokens": 8, "chat_template": "none", "lambda_l2": 0.0, "set": ["power=2"]}, 8),
        ({"set": ["*.max_new_tokens=8"]}, 8),
        ({"chat_template": "none", "set": ["*.chat_template=none", "generation.max_new_tokens=8"]}, 8),
        ({"set": ["perplexity.max_new_tokens=8"]}, 50),
    ],
)
def test_the_scoring_of_a_record_has_its_settings_under_whatever_name(config: dict[str, Any], tokens: int) -> None:
    scoring = recorded_scoring({"scoring": "generation", **config})
    assert values_of(scoring) == {"max_new_tokens": tokens}
    assert changed_settings(SCORINGS, "generation", scoring) == (("max_new_tokens=8",) if tokens == 8 else ())


def test_what_a_scoring_does_not_have_says_nothing() -> None:
    assert values_of(recorded_scoring({"scoring": "likelihood", "max_new_tokens": 8, "set": ["sheet=x"]})) == {}
    with pytest.raises(ConfigError, match="max_new_tokens = '0'"):
        recorded_scoring({"scoring": "generation", "max_new_tokens": 0})
    with pytest.raises(ConfigError, match="there is no scoring 'likelihod'"):
        recorded_scoring({"scoring": "likelihod"})


@pytest.mark.parametrize(
    ("config", "chat"),
    [
        ({"format": "alpaca"}, False),
        ({"format": "alpaca", "chat_template": "none"}, False),
        ({"format": "alpaca", "chat_template": "auto"}, True),
        ({"format": "messages"}, True),
        ({"format": "of no installed package"}, False),
        ({}, False),
    ],
)
def test_a_record_says_whether_prompts_stand_in_the_chat_template(config: dict[str, Any], chat: bool) -> None:
    assert in_chat_template(config) == chat


def test_settings_are_told_apart_by_what_has_them() -> None:
    given = ("encoding=cp1252", ".csv.delimiter=;", "*.sheet=x", "lambda_l2=1", "prompt_template={text}", "unknown=1")
    assert without_format(given) == given[3:]
    assert of_training(given) == ("lambda_l2=1", "unknown=1")
