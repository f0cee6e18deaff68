"""``lorabank show``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from typing import Any

import click

from lorabank.core.commands import Command
from lorabank.core.config import TrainConfig
from lorabank.core.escaping import safe
from lorabank.core.task_kinds import task_kind
from lorabank_cli.completion import complete_names
from lorabank_cli.options import spellings
from lorabank_cli.render.curves import course
from lorabank_cli.render.output import plain
from lorabank_cli.render.text import farthest, named, outline, pairs, shortened
from lorabank_cli.verb import Run, verb


@verb("show", examples=("show sentiment", "show sentiment --curve training.png", "show routed --json"))
@click.argument("name", shell_complete=complete_names, help="A task or a composition.")
@click.option("--curve", metavar="FILE", help="Draw the training of a task: .png or .svg.")
def show(run: Run, name: str, curve: str | None) -> None:
    """Show everything recorded about a task or composition."""
    from lorabank import api

    document = api.show(run.bank, name)
    if curve is not None:
        run.output.notice(f"wrote {api.save_curve(run.bank, name, curve)}")
    chosen = ("--composition", name) if "composition" in document else ("--task", name)
    task = document.get("task", {})
    free = bool(task) and task_kind(task["task_type"]).generates and not task.get("labels")
    ready = [Command("generate", *chosen, "TEXT") if free else Command("predict", *chosen, "TEXT")]
    if chosen[0] == "--task":
        ready.append(Command("export", name, "FOLDER"))
    shown = plain({key: value for key, value in document.items() if key != "curve"})
    metrics = shown.get("adapter", {}).get("metrics", {})
    left, ranks = metrics.pop("capacity_by_module", None), metrics.pop("rank_by_module", None)
    if config := shown.get("adapter", {}).get("config"):
        names = spellings(TrainConfig)
        shown["adapter"]["config"] = {names.get(key, key).replace("-", "_"): value for key, value in config.items()}
    made = shown.get("composition", {}).get("parameters", {})
    made |= {name: farthest(made[name]) for name in ("relative_error", "distance") if made.get(name)}
    blocks = {
        "training": course(document.get("curve")),
        "how it is asked": _asked(document),
        "ranks by module": _ranks(ranks or {}),
        "room for later tasks": _room(left or {}),
    }
    parts = [f"{safe(name)} in {safe(run.bank)}\n{outline(shown)}"]
    parts += [f"{title}\n{pairs(items)}" for title, items in blocks.items() if items]
    parts.append(run.output.next(*ready, title="ready to type"))
    run.output.data(document, "\n\n".join(parts))


def _ranks(ranks: Mapping[str, int]) -> list[tuple[str, object]]:
    """The mean, and the modules of each rank, the highest first; empty where all modules have one."""
    if not ranks:
        return []
    of: dict[int, list[str]] = {}
    for module, rank in sorted(ranks.items()):
        of.setdefault(rank, []).append(module)
    mean = sum(ranks.values()) / len(ranks)
    return [
        (f"mean of {len(ranks)} modules", f"{mean:.1f}"),
        *((f"rank {rank}", shortened(modules)) for rank, modules in sorted(of.items(), reverse=True)),
    ]


def _room(left: Mapping[str, float]) -> list[tuple[str, object]]:
    """Share of each module's input space that no adapter uses: the median, and the modules with the least."""
    if not left:
        return []
    tightest = sorted(left.items(), key=lambda item: item[1])[:3]
    share = f"{100 * statistics.median(left.values()):.1f} % of the input space"
    return [
        (f"median of {len(left)} modules", share),
        *((module, f"{100 * value:.1f} %") for module, value in tightest),
    ]


def _asked(document: Mapping[str, Any]) -> list[tuple[str, object]]:
    """What decides the answers of a language model's task, in one place; empty for a classifier's."""
    task = document.get("task", {})
    if not task or task_kind(task["task_type"]).labelled:
        return []
    from lorabank.core.methods import values_of
    from lorabank.data.forms.base import load_form
    from lorabank.data.methods import in_chat_template, recorded_scoring
    from lorabank.evaluation.text_samples import metric_of

    config = document["adapter"]["config"]
    form = load_form(config["format"])
    scoring, template = config["scoring"], task["prompt_template"]
    whole = "none: the whole text is learnt" if not form.answered else "the text is the prompt"
    return [
        ("task type", task["task_type"]),
        ("form of the rows", config["format"]),
        ("chat template", "the base's, around every text" if in_chat_template(config) else None),
        ("prompt", whole if template is None else json.dumps(template, ensure_ascii=False)),
        ("scoring", scoring),
        ("metric", named(metric_of(scoring, document["adapter"].get("metrics", {})))),
        *((name.replace("_", " "), value) for name, value in values_of(recorded_scoring(config)).items()),
    ]
