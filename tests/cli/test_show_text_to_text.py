"""show: how a language model's task is asked stands in one place."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize(
    ("template", "form", "scoring", "shown"),
    [
        ("{text}\nAnswer:\x1b[2J", "classification", "likelihood", ['"{text}\\nAnswer:\\u001b[2J"', "accuracy"]),
        (None, "messages", "generation", ["the text is the prompt", "exact match", "new tokens        20"]),
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
    assert ("new tokens" in asked) == (scoring == "generation")


def test_show_asks_a_classifier_nothing(run: Any, api: Any) -> None:
    api["show"] = {"task": {"name": "spam", "task_type": "SEQ_CLS"}, "adapter": {"config": {}}}
    assert "how it is asked" not in run("show", "spam").out
