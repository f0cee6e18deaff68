"""show: how a language model's task is asked, and how much room is left, each in one place."""

from __future__ import annotations

import json
from typing import Any

import pytest


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
