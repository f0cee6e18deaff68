"""The settings as a form: what it asks for is what `TrainConfig` has, and what comes back is the command line's."""

from __future__ import annotations

import pytest
from lorabank_cli.options import spellings

from lorabank.core.config import TrainConfig
from lorabank.core.settings import setting_names
from lorabank.page.jobs.form import LEFT_OUT, Filled, filled
from lorabank.workflows.learning.past import typed


def sent(**fields: str) -> dict[str, str]:
    """What a browser sends of a form in which only these fields were changed."""
    controls = {one.name: one for part in filled("d.jsonl", {}).sections.values() for one in part}
    usual = {name: one.value for name, one in controls.items() if one.kind != "box" or one.value}
    return {"sent": "yes", **usual, **fields}


def control(form: Filled, name: str) -> object:
    return next(one for part in form.sections.values() for one in part if one.name == name)


def test_there_is_a_control_for_every_setting() -> None:
    form = filled("d.jsonl", {})
    names = [one.name for part in form.sections.values() for one in part if not one.name.startswith("set:")]
    assert names == [name for name in setting_names(TrainConfig) if name not in LEFT_OUT]
    options = spellings(TrainConfig)
    assert all(one.label == f"--{options[one.name]}" for part in form.sections.values() for one in part
               if one.name in options)  # fmt: skip
    assert all(one.help for part in form.sections.values() for one in part)


def test_a_form_that_was_not_changed_gives_the_defaults() -> None:
    assert filled("d.jsonl", {}).config == TrainConfig(data="d.jsonl")
    assert filled("d.jsonl", sent()) == filled("d.jsonl", {})


def test_what_was_changed_is_in_the_command() -> None:
    form = filled(
        "d.jsonl",
        sent(r="4", epochs="0.5", packing="on", penalty="l1", savings="dropbp\nhiddenkey", target_modules="a b"),
    )
    assert typed(form.config)[2:] == [
        "--saving", "dropbp", "--saving", "hiddenkey", "--penalty", "l1", "--r", "4", "--target-modules", "a b",
        "--epochs", "0.5", "--packing",
    ]  # fmt: skip
    box = control(form, "packing")
    assert box.value == "on"


def test_a_box_that_was_unticked_is_off() -> None:
    fields = sent()
    assert fields.get("use_rslora") is None
    assert filled("d.jsonl", fields | {"use_rslora": "on"}).config.use_rslora
    assert not filled("d.jsonl", fields).config.use_rslora


def test_settings_of_the_chosen_methods_are_asked_for() -> None:
    form = filled("d.jsonl", sent(strategy="replay"), rows="classification")
    own = {one.label: one for one in form.sections["Settings of the chosen methods"]}
    assert "replay.replay_rows" in own
    changed = filled("d.jsonl", sent(strategy="replay") | {"set:replay.replay_rows": "7"})
    assert changed.config.set == ("replay.replay_rows=7",)
    assert changed.problems == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"r": "0"}, "r = "), ({"epochs": "many"}, "epochs = "), ({"strategy": "magic"}, "magic"),
        ({"seed": "-1", "lora_dropout": "2"}, "seed"), ({"set": "nothing"}, "KEY=VALUE"),
        ({"set": "orthogonal.nothing=1"}, "nothing"), ({"r": "<script>"}, "<script>"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(fields: dict[str, str], said: str) -> None:
    form = filled("d.jsonl", sent(**fields))
    assert any(said in problem for problem in form.problems)
    for name in fields:
        assert control(form, name).value == fields[name]
