"""``lorabank import``."""

from __future__ import annotations

import click

from lorabank.core.config import InitConfig
from lorabank_cli.text import pairs, safe, scored
from lorabank_cli.verb import Run, verb


@verb(
    "import",
    configs={"New bank": InitConfig},
    examples=("import ./spam-adapter --task spam --labels ham,spam", "import ./a --task a --eval-data a.jsonl"),
)
@click.argument("source", help="PEFT folder with adapter_config.json and adapter_model.safetensors.")
@click.option("--task", required=True, metavar="NAME", help="Name of the task in the bank.")
@click.option("--labels", metavar="A,B,...", help="Labels in the order of the head's outputs.")
@click.option("--eval-data", metavar="FILE", help="Evaluation rows to keep and to score.")
@click.option("--text-column", default="text", show_default=True, help="Column that holds the text.")
@click.option("--label-column", default="label", show_default=True, help="Column that holds the label.")
def import_adapter(
    run: Run, source: str, task: str, labels: str | None, eval_data: str | None, text_column: str, label_column: str
) -> None:
    """Add a LoRA adapter that was trained elsewhere.

    It must fit the bank's base model; its files are checked and copied, never executed.
    """
    from lorabank import api

    names = tuple(part.strip() for part in labels.split(",")) if labels else None
    with run.observer as observer:
        result = api.import_adapter(
            run.bank,
            source,
            task,
            labels=names,
            eval_data=eval_data,
            text_column=text_column,
            label_column=label_column,
            init=run.config(InitConfig),
            observer=observer,
        )
    facts = pairs(
        [
            ("adapter", result.adapter.digest),
            ("labels", ", ".join(result.task.labels)),
            ("accuracy", f"{scored(result.score)} (95 % interval, task id given)" if result.score else None),
            ("next", "lorabank compose --mode prototype"),
        ]
    )
    head = f"imported task {safe(task)} (number {result.task.position}) into {safe(run.bank)}"
    run.output.data(result, f"{head}\n{facts}")
