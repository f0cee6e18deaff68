"""Settings: whatever number is no number of this world is refused by name, in every class and from every side."""

from __future__ import annotations

import math
import typing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from lorabank import api
from lorabank.core import config
from lorabank.core.config import ComposeConfig, EvalConfig, TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.machine.sizes import parse_bytes
from lorabank.core.settings import validate
from lorabank.evaluation.thresholds import parse_gate
from lorabank.sequences import config as sequence_config
from lorabank.sequences.file import read_sequence

CLASSES = [
    kind
    for module in (config, sequence_config)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and kind.__module__ == module.__name__ and name.endswith(("Config", "Settings", "Table"))
    if name != "SequenceConfig"
]

NUMBERS = [
    (kind, field.name, number)
    for kind in CLASSES
    for field in fields(kind)
    for number in (int, float)
    if get_type_hints(kind)[field.name] in (number, number | None)
]

FLOATS = [(kind, name) for kind, name, number in NUMBERS if number is float]
NOT_FINITE = [math.inf, -math.inf, math.nan, "1e999"]


def test_the_numbers_are_those_of_every_class() -> None:
    assert {"TrainConfig", "ComposeConfig", "EvalConfig", "SequenceSettings", "TaskTable"} <= {
        kind.__name__ for kind in CLASSES
    }
    assert len(FLOATS) > 25


@pytest.mark.parametrize("kind", CLASSES)
def test_what_is_not_finite_is_refused_by_its_name(kind: type[Any]) -> None:
    names = [name for owner, name in FLOATS if owner is kind]
    for value in NOT_FINITE:  # all at once: every mistake is named
        problems = _problems(kind, dict.fromkeys(names, value))
        assert [f"{name} = {value!r}: input should be a finite number" for name in names] == problems


@pytest.mark.parametrize("kind", CLASSES)
def test_a_count_beyond_what_can_be_counted_is_refused_by_its_name(kind: type[Any]) -> None:
    names = [name for owner, name, number in NUMBERS if owner is kind and number is int]
    for value in (2**63, 10**400, -(2**63)):
        assert [problem.split(" = ")[0] for problem in _problems(kind, dict.fromkeys(names, value))] == names


def _problems(kind: type[Any], values: dict[str, Any]) -> list[str]:
    if not values:
        return []
    with pytest.raises(ConfigError) as caught:
        validate(kind, values, where="here")
    assert caught.value.exit_code == 2
    return caught.value.message.removeprefix("here: ").split("; ")


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_the_library_refuses_it_before_anything_is_touched(tmp_path: Path, value: float) -> None:
    good = TrainConfig(data=str(tmp_path / "rows.jsonl"))
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 1}\n')
    for name in ("learning_rate", "lora_alpha", "epochs", "penalty_weight", "weight_decay"):
        bad = replace(good, **{name: value})
        for call in (
            lambda bad=bad: api.plan_task(tmp_path / "bank", "t", bad),
            lambda bad=bad: api.add_task(tmp_path / "bank", "t", bad),
        ):
            with pytest.raises(ConfigError, match=name):
                call()
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_weights_gates_and_sizes_are_finite() -> None:
    from lorabank.compose.mergers.weighted import parse_weights

    for text in ("inf", "-inf", "nan", "1e999"):
        with pytest.raises(ConfigError, match="weights"):
            parse_weights(f"a={text}", ("a",))
        with pytest.raises(ConfigError, match=text):
            parse_gate(f"backward_transfer>={text}")
        with pytest.raises(ConfigError, match="--max-resident"):
            parse_bytes(text, option="--max-resident")
    with pytest.raises(ConfigError, match="--max-resident"):
        parse_bytes("9" * 400 + "TiB", option="--max-resident")


@pytest.mark.parametrize(
    "line",
    [
        "[train]\nlearning_rate = inf",
        "[strategy.olora]\npenalty_weight = nan",
        "[tasks.a]\ndata = 'x.jsonl'\nepochs = -inf",
        "dev_fraction = nan",
    ],
)
def test_a_sequence_names_it(tmp_path: Path, line: str) -> None:
    file = tmp_path / "sequence.toml"
    file.write_text(line + "\n")
    name = line.splitlines()[-1].partition(" ")[0]
    with pytest.raises(ConfigError, match=f"{name} = .*finite"):
        read_sequence(file)


def test_settings_within_bounds_are_taken() -> None:
    assert validate(TrainConfig, {"learning_rate": "1e-4", "epochs": 3}).learning_rate == 1e-4
    assert validate(ComposeConfig, {"tasks": None}).tasks is None
    assert validate(EvalConfig, {"batch_size": 2**31 - 1}).batch_size == 2**31 - 1


@pytest.mark.parametrize("kind", [ComposeConfig, EvalConfig, TrainConfig])
@pytest.mark.parametrize("truth", [True, False])
def test_true_and_false_are_not_numbers(kind: type, truth: bool) -> None:
    hints = typing.get_type_hints(kind)
    numbers = [name for name, hint in hints.items() if {int, float} & {hint, *typing.get_args(hint)}]
    assert len(numbers) >= 1
    for name in numbers:
        with pytest.raises(ConfigError, match=f"{name} = {truth}: true and false are not numbers"):
            validate(kind, {name: truth})
    flags = [name for name, hint in hints.items() if hint is bool]
    assert all(getattr(validate(kind, {name: truth}), name) is truth for name in flags)
