"""``lorabank show``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from lorabank_cli.completion import complete_names
from lorabank_cli.output import plain
from lorabank_cli.text import command, named, outline, pairs, safe
from lorabank_cli.verb import Run, verb


@verb("show", examples=("show sentiment", "show routed --json"))
@click.argument("name", shell_complete=complete_names, help="A task or a composition.")
def show(run: Run, name: str) -> None:
    """Show everything recorded about a task or composition."""
    from lorabank import api

    document = api.show(run.bank, name)
    chosen = ("--composition", name) if "composition" in document else ("--task", name)
    ready: list[tuple[str, object]] = [("predict", command("lorabank", "predict", *chosen, "TEXT"))]
    if chosen[0] == "--task":
        ready.append(("export", command("lorabank", "export", name, "FOLDER")))
    asked = _asked(document)
    parts = [f"{safe(name)} in {safe(run.bank)}\n{outline(plain(document))}", f"ready to type\n{pairs(ready)}"]
    if asked:
        parts.insert(1, f"how it is asked\n{pairs(asked)}")
    run.output.data(document, "\n\n".join(parts))


def _asked(document: Mapping[str, Any]) -> list[tuple[str, object]]:
    """What decides the answers of a language model's task, in one place; empty for a classifier's."""
    task = document.get("task", {})
    if task.get("task_type", "SEQ_CLS") == "SEQ_CLS":
        return []
    from lorabank.evaluation.scoring import DEFAULT_METRICS

    config = document["adapter"]["config"]
    scoring, template = config["scoring"], task["prompt_template"]
    whole = "none: the whole text is learnt" if config["format"] == "text" else "the text is the prompt"
    return [
        ("task type", task["task_type"]),
        ("form of the rows", config["format"]),
        ("prompt", whole if template is None else json.dumps(template, ensure_ascii=False)),
        ("scoring", scoring),
        ("metric", named(DEFAULT_METRICS[scoring])),
        ("new tokens", config["max_new_tokens"] if scoring == "generation" else None),
    ]
