"""Settings under the names that they had: Python, loose values and records of older versions."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorabank import api
from lorabank.core.config import ComposeConfig, EvalConfig, GenerateConfig, PredictConfig, TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.methods import with_settings
from lorabank.core.settings import examine, modern, old_names, setting_names, validate


def test_old_names_become_the_new_ones_and_are_told() -> None:
    given = {"lambda_orth": 0.5, "lambda_l1": 0.25, "replay_rows": 6, "set": ("a=1",), "r": 4}
    values, notices = modern(TrainConfig, given)
    new = {"r": 4, "penalty_weight": 0.5, "set": ("a=1", "amlora.lambda_l1=0.25", "replay.replay_rows=6")}
    assert values == new
    assert [notice.partition(": write ")[2] for notice in notices] == [
        "--penalty-weight 0.5",
        "--set amlora.lambda_l1=0.25",
        "--set replay.replay_rows=6",
    ]
    assert modern(TrainConfig, values) == (values, ())
    assert validate(TrainConfig, given) == validate(TrainConfig, new)


def test_a_setting_of_whichever_method_has_it_is_written_without_a_method() -> None:
    values, (notice,) = modern(ComposeConfig, {"epochs": 3})
    assert values == {"set": ("*.epochs=3",)}
    assert notice == "--epochs is an old name: write --set '*.epochs=3'"


def test_a_setting_that_a_chosen_method_must_have_is_written_as_it_is_given() -> None:
    values, (notice,) = modern(TrainConfig, {"lambda_l2": 0.5})
    assert values == {"set": ("lambda_l2=0.5",)}
    assert notice == "--lambda-l2 is an old name: write --set lambda_l2=0.5"


def test_what_a_shell_would_take_apart_is_quoted() -> None:
    _, (notice,) = modern(ComposeConfig, {"epochs": "3; ls"})
    assert notice == "--epochs is an old name: write --set '*.epochs=3; ls'"


@pytest.mark.parametrize("kind", [TrainConfig, ComposeConfig, PredictConfig, GenerateConfig])
def test_what_a_notice_says_can_be_typed_and_means_the_same(kind: type[Any]) -> None:
    """Also where no chosen method has the setting, which the old name does not mind."""
    for name, new in old_names(kind).items():
        values, (notice,) = modern(kind, {name: 7})
        option, text = shlex.split(notice.partition(": write ")[2])
        assert values == ({"set": (text,)} if option == "--set" else {option[2:].replace("-", "_"): 7})
        if "." in new and not new.startswith("set."):
            assert with_settings([], [text]) == []


def test_none_under_an_old_name_says_nothing() -> None:
    assert modern(TrainConfig, {"lambda_orth": None, "penalty_weight": 2.0}) == ({"penalty_weight": 2.0}, ())


def test_neither_does_the_default_that_it_had() -> None:
    """Records of older versions hold it whatever the method was, and scripts may write it."""
    recorded = {"lambda_l1": 1e-3, "lambda_l2": 0.0, "replay_rows": 200, "strategy": "nlora"}
    assert modern(TrainConfig, recorded) == ({"strategy": "nlora"}, ())
    assert modern(TrainConfig, {"replay_rows": 0})[0] == {"set": ("replay.replay_rows=0",)}


def test_a_value_called_none_is_a_value() -> None:
    """Of a setting whose default was to have none."""
    assert modern(TrainConfig, {"sheet": "None"})[0] == {"set": ("*.sheet=None",)}


def test_a_class_without_old_names_has_none() -> None:
    assert old_names(EvalConfig) == {}
    assert modern(EvalConfig, {"epochs": 3}) == ({"epochs": 3}, ())


@pytest.mark.parametrize("kind", [TrainConfig, ComposeConfig])
def test_an_old_name_is_no_setting(kind: type[Any]) -> None:
    assert old_names(kind)
    assert old_names(kind).keys().isdisjoint(setting_names(kind))


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (TrainConfig, {"lambda_orth": 0.0, "penalty_weight": 2.0}),
        (TrainConfig, {"lambda_l2": 0.5, "set": ("frobenius.lambda_l2=0.25",)}),
        (TrainConfig, {"lambda_l1": 0.5, "set": ("amlora.lambda_l1=0.25",)}),
        (TrainConfig, {"replay_rows": 6, "set": ("seed=1", "replay_rows = 7")}),
        (ComposeConfig, {"epochs": 1, "set": ["attention.epochs=2"]}),
    ],
)
def test_a_setting_under_both_names_is_refused(kind: type[Any], given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(given))} is given under its new name too: "):
        kind(**given)


def test_what_cannot_be_a_list_is_still_refused() -> None:
    assert "set" in examine(TrainConfig, {"set": 5, "replay_rows": 6}).wrong


def test_a_script_with_old_names_is_warned_where_it_writes_them_and_checked(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "a", "label": "b"}) + "\n")
    with pytest.warns(DeprecationWarning, match="--lambda-orth is an old name: write --penalty-weight 0") as told:
        config = TrainConfig(data=str(rows), strategy="replay", **{"lambda_orth": 0.0})
    assert [one.filename for one in told] == [__file__]
    assert config == TrainConfig(data=str(rows), strategy="replay", penalty_weight=0.0)
    with pytest.warns(DeprecationWarning, match="write --set replay.replay_rows=0"):
        config = replace(config, **{"replay_rows": 0})
    with pytest.raises(ConfigError, match="replay_rows = '0'"):
        api.plan_task(tmp_path / "bank", "t", config)
