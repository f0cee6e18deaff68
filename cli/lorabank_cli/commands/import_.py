"""``lorabank import``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from lorabank.core.commands import Command
from lorabank.core.config import InitConfig, LoralibConfig, TrainConfig
from lorabank.core.escaping import safe
from lorabank.core.limits import MAX_RANK
from lorabank.core.states import TUNER
from lorabank_cli.commands.add_task import again, numbered
from lorabank_cli.options import Option, remarked
from lorabank_cli.render.labels import summary
from lorabank_cli.render.text import named, pairs, scored
from lorabank_cli.render.texts import other_metrics, samples
from lorabank_cli.verb import Run, verb

DATA = (
    "data", "eval_data", "format", "map", "eval_fraction", "text_column", "label_column", "skip_bad", "scoring",
    "set", "max_length",
)  # fmt: skip
OLD = (
    "delimiter", "encoding", "sheet", "prompt_template", "chat_template", "label_words", "max_new_tokens",
)  # fmt: skip
KEPT = ("keep_samples", "clusters_per_task", "seed", "device")


@verb(
    "import",
    configs={"Data": TrainConfig, "Checkpoint of loralib": LoralibConfig, "New bank": InitConfig},
    fields={"Data": (*DATA, *KEPT, *OLD)},
    required=("data",),
    examples=(
        "import ./spam-adapter --task spam --data spam.jsonl",
        "import ./spam-adapter --task spam --data spam.jsonl --labels ham,spam",
        "import ./chat-adapter --task chat --data chats.jsonl --format messages",
        "import someone/spam-adapter@main --as-task spam --data spam.jsonl",
        "import ./loha-adapter --task spam --data spam.jsonl --as-lora 16",
        "import ./e2e.safetensors --task e2e --data e2e.jsonl --alpha 32 --enable-lora true,false,true",
    ),
)
@click.argument("source", help="A PEFT folder, a hub id[@REV], or a checkpoint of loralib (.safetensors).")
@click.option(
    "--task", "--as-task", "task", cls=Option, required=True, metavar="NAME", help="Name of the task in the bank."
)
@click.option("--labels", metavar="A,B,...", help="Labels in the order of a head's outputs; default: the data's.")
@click.option("--base-fingerprint", metavar="HEX", help="Fingerprint of the base model under the adapter.")
@click.option("--part", type=click.IntRange(min=1), metavar="N", help="Import one task of a folder that O-LoRA saved.")
@click.option(
    "--as-lora", type=click.IntRange(1, MAX_RANK), metavar="R", help="Cut another tuner of PEFT to this rank."
)
@click.option("--ignore-unknown", is_flag=True, help="Ignore unknown fields of a PEFT config, and list them.")
@click.option("--replace", is_flag=True, help="Make a new version of a task of this name; 'lorabank undo' reverts it.")
@remarked
def import_adapter(
    run: Run,
    source: str,
    task: str,
    labels: str | None,
    base_fingerprint: str | None,
    part: int | None,
    as_lora: int | None,
    ignore_unknown: bool,
    replace: bool,
    note: str | None,
    tags: tuple[str, ...],
) -> None:
    """Add an adapter that was trained elsewhere.

    The adapter must fit the bank's base model. Its files are checked and copied, and nothing in them is executed. The
    rows of --data are examples of the task: a part of them measures the adapter, and routing learns from the others.
    For a language model, give the prompt of the training with --set prompt_template=TEMPLATE. If the adapter's config
    does not name the bank's base model, confirm with --base-fingerprint that the adapter was trained on the same
    weights. A checkpoint of loralib names neither the base model nor its scaling: give --base-fingerprint and --alpha.
    LoHa, LoKr, OFT and other tuners of PEFT answer alone or routed; --as-lora makes LoRA adapters of them, and says
    what that loses.
    """
    from lorabank import api

    with run.observer as observer:
        result = api.import_adapter(
            run.bank,
            source,
            task,
            config=run.config(TrainConfig),
            labels=[part.strip() for part in labels.split(",")] if labels else None,
            init=run.config(InitConfig),
            base_fingerprint=base_fingerprint,
            part=part,
            ignore_unknown=ignore_unknown,
            loralib=run.config(LoralibConfig),
            as_lora=as_lora,
            observer=observer,
            note=note,
            tags=tags,
            replace=replace,
        )
    template = result.task.prompt_template
    facts = pairs(
        [
            ("adapter", result.adapter.digest),
            ("labels", ", ".join(result.task.labels) or None),
            ("prompt", template and json.dumps(template, ensure_ascii=False)),
            (named(result.score["metric"]), f"{scored(result.score)} (95 % interval, task id given)"),
            *summary(result.score.get("labels")),
            *other_metrics(result.score.get("texts"), result.score["metric"]),
            ("kept as", _kept_as(result.adapter.metrics)),
        ]
    )
    head = f"imported task {safe(task)} ({numbered(result.task)}) into {safe(run.bank)}"
    from lorabank.core.shelves import ROUTING

    follow = run.output.next(Command("compose", "--mode", ROUTING))
    told = "\n".join([head, facts, follow, *again(run, result)])
    texts = result.score.get("texts")
    run.output.data(result, f"{told}\n\n{samples(texts)}" if texts else told)


def _kept_as(metrics: Mapping[str, Any]) -> str | None:
    """What a tuner of PEFT is in the bank; None for a LoRA adapter."""
    if TUNER in metrics:
        return f"{metrics[TUNER]}, which answers alone or routed"
    if cut := metrics.get("as_lora"):
        return f"LoRA, with a relative error of {cut['relative_error']:.3g} to the delta weights of {cut['tuner']}"
    return None
