"""show: how a language model's task is asked, and how much room is left, each in one place."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from lorabank_cli.render.curves import spark

from lorabank.models.facts.curves import HeldOut, LearningCurve


@pytest.mark.parametrize(
    ("template", "form", "scoring", "shown"),
    [
        ("{text}\nAnswer:\x1b[2J", "classification", "likelihood", ['"{text}\\nAnswer:\\u001b[2J"', "accuracy"]),
        (None, "messages", "generation", ["the text is the prompt", "exact match", "max new tokens    20"]),
        (None, "text", "perplexity", ["none: the whole text is learnt", "inverse perplexity"]),
    ],
)
def test_show_says_how_a_task_is_asked(
    run: Any, api: Any, template: str | None, form: str, scoring: str, shown: list[str]
) -> None:
    task = {"name": "spam", "task_type": "CAUSAL_LM", "prompt_template": template}
    adapter = {"config": {"format": form, "scoring": scoring, "max_new_tokens": 20}}
    api["show"] = {"task": task, "adapter": adapter}
    out = run("show", "spam").out
    asked = out[out.index("how it is asked") : out.index("ready to type")]
    for fact in ("CAUSAL_LM", form, scoring, *shown):
        assert fact in asked
    assert ("new tokens" in asked) == (scoring != "likelihood")
    assert "lorabank generate --task spam TEXT" in out


def test_show_asks_a_classifier_nothing(run: Any, api: Any) -> None:
    api["show"] = {"task": {"name": "spam", "task_type": "SEQ_CLS"}, "adapter": {"config": {}}}
    out = run("show", "spam").out
    assert "how it is asked" not in out
    assert "lorabank predict --task spam TEXT" in out


def test_show_tells_which_modules_have_the_least_room(run: Any, api: Any) -> None:
    left = {"layer.0.query": 0.9, "layer.0.value": 0.7, "layer.1.query": 0.8, "layer.1.value": 0.85}
    adapter = {"config": {}, "metrics": {"capacity_left": 0.7, "capacity_by_module": left}}
    api["show"] = {"task": {"name": "spam", "task_type": "SEQ_CLS"}, "adapter": adapter}
    out = run("show", "spam").out
    room = out[out.index("room for later tasks") : out.index("ready to type")]
    lines = [line.split() for line in room.splitlines()[1:] if line.strip()]
    assert lines[0] == ["median", "of", "4", "modules", "82.5", "%", "of", "the", "input", "space"]
    assert [line[:2] for line in lines[1:]] == [
        ["layer.0.value", "70.0"],
        ["layer.1.query", "80.0"],
        ["layer.1.value", "85.0"],
    ]
    assert "layer.0.query" not in out, "a large model has hundreds of modules"
    assert json.loads(run("show", "spam", "--json").out)["adapter"]["metrics"]["capacity_by_module"] == left


def test_show_tells_which_modules_have_which_rank(run: Any, api: Any) -> None:
    ranks = {"layer.0.query": 0, "layer.0.value": 3, "layer.1.query": 3, "layer.1.value": 2}
    adapter = {"config": {}, "metrics": {"rank_by_module": ranks}}
    api["show"] = {"task": {"name": "spam", "task_type": "SEQ_CLS"}, "adapter": adapter}
    out = run("show", "spam").out
    told = out[out.index("ranks by module") : out.index("ready to type")]
    lines = [line.split() for line in told.splitlines()[1:] if line.strip()]
    assert lines == [
        ["mean", "of", "4", "modules", "2.0"],
        ["rank", "3", "layer.0.value,", "layer.1.query"],
        ["rank", "2", "layer.1.value"],
        ["rank", "0", "layer.0.query"],
    ]


def test_show_tells_which_modules_of_a_merge_are_farthest_from_the_sum(run: Any, api: Any) -> None:
    distance = {f"layer.{number}": number / 10 for number in range(5)}
    composition = {"name": "sum", "parameters": {"distance": distance, "relative_error": {"layer.0": 0.5}}}
    api["show"] = {"composition": composition, "members": []}
    out = run("show", "sum").out
    told = [line.split() for line in out[out.index("    distance") :].splitlines()[1:5]]
    assert told == [
        ["median", "of", "5", "modules", "0.2"],
        ["layer.4", "0.4"],
        ["layer.3", "0.3"],
        ["layer.2", "0.2"],
    ]
    assert "layer.1" not in out, "a large model has hundreds of modules"
    assert json.loads(run("show", "sum", "--json").out)["composition"]["parameters"]["distance"] == distance


def test_show_calls_a_list_as_its_option_is_called(run: Any, api: Any) -> None:
    api["show"] = {"task": {"name": "spam", "task_type": "SEQ_CLS"}, "adapter": {"config": {"savings": ["dropbp"]}}}
    out = run("show", "spam").out
    assert [line.split() for line in out.splitlines() if "dropbp" in line] == [["saving", "dropbp"]]
    assert json.loads(run("show", "spam", "--json").out)["adapter"]["config"] == {"savings": ["dropbp"]}


def curve(**held: Any) -> LearningCurve:
    steps = tuple(range(1, 61))
    losses = tuple(1.0 / step for step in steps)
    rates = tuple(min(step / 10, 1.0) * 1e-3 for step in steps)
    kept = HeldOut(12, 20, 3, (20, 40, 60), (0.5, 0.25, 0.375), (0.5, 0.75, 0.75), 40, stopped=True) if held else None
    return LearningCurve(1, steps, losses, rates, kept)


def test_show_tells_how_a_task_was_trained(run: Any, api: Any) -> None:
    task = {"name": "spam", "task_type": "SEQ_CLS"}
    api["show"] = {"task": task, "adapter": {"config": {}}, "curve": asdict(curve(held=True))}
    shown = run("show", "spam").out
    block = shown[shown.index("\ntraining\n") : shown.index("ready to type")]
    for fact in (
        "1 to 0.01667 in 60 steps", "from 0.0001, at most 0.001, to 0.001", "12 of the training file",
        "measured every 20",
        "0.5 to 0.375, lowest 0.25", "step 40, stopped after 60: accuracy 0.7500", "█▁",
    ):  # fmt: skip
        assert fact in block, fact
    document = run("show", "spam", "--json").document["curve"]
    assert document["held"]["losses"] == [0.5, 0.25, 0.375]
    assert document["steps"] == list(range(1, 61))
    api["show"] = {"task": task, "adapter": {"config": {}}, "curve": asdict(curve())}
    alone = run("show", "spam").out
    assert "in 60 steps" in alone
    assert "held-out" not in alone
    api["show"] = {"task": task, "adapter": {"config": {}}, "curve": None}
    assert "\ntraining\n" not in run("show", "spam").out


def test_show_draws_a_training(run: Any, api: Any) -> None:
    task = {"name": "spam", "task_type": "SEQ_CLS"}
    api["show"] = {"task": task, "adapter": {"config": {}}, "curve": asdict(curve(held=True))}
    api["save_curve"] = lambda path, name, target: target
    found = run("show", "spam", "--curve", "spam.png")
    assert "wrote spam.png" in found.err
    assert api.called("save_curve")["name"] == "spam"


def test_a_row_of_bars_has_one_for_each_part() -> None:
    assert spark([1.0, 2.0, 3.0, 8.0]) == "▁▂▃█"
    assert spark([5.0]) == "▁"
    assert spark([3.0] * 7) == "▁" * 7
    assert spark([0.0] * 40 + [1.0] * 40, columns=4) == "▁▁██"
