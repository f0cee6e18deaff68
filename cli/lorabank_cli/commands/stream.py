"""``lorabank stream``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from lorabank.core.commands import Command
from lorabank.core.config import InitConfig, TrainConfig
from lorabank.core.escaping import safe
from lorabank_cli.options import Option
from lorabank_cli.render.streams import bytes_of
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.workflows.learning.found import FoundTask, StreamResult

ROWS = ("data", "eval_fraction", "text_column", "label_column", "max_length", "keep_samples", "clusters_per_task")
TRAINED = (
    "set", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "first_layer", "batch_size",
    "learning_rate", "weight_decay", "max_grad_norm", "seed", "device", "base_dtype",
)  # fmt: skip


@verb(
    "stream",
    configs={"Stream": TrainConfig, "New bank": InitConfig},
    fields={"Stream": (*ROWS, *TRAINED)},
    required=("data",),
    examples=(
        "stream --data messages.jsonl",
        "stream --data - --json < messages.jsonl",
        "stream --data messages.jsonl --resume",
        "stream --data messages.jsonl --set window=8 --set mean_threshold=0.3",
    ),
)
@click.option(
    "--name", "prefix", cls=Option, default="stream", help="Tasks are called NAME-1, NAME-2, ....  [default: stream]"
)
@click.option("--resume", is_flag=True, help="Pass the rows that the bank's stream took, and resume behind them.")
def stream(run: Run, prefix: str, resume: bool) -> None:
    """Learn labelled texts in their order, each once, and find the tasks among them.

    The data are JSON lines; - reads them from standard input. When the loss has settled, the adapter enters the bank
    as a task and a new one begins (Online-LoRA). All tasks share one head, which new labels make grow, so no task id
    is needed to answer. The command prints a line for each task, with --json an object.
    """
    from lorabank import api
    from lorabank_cli.failures import Interrupted

    config = run.config(TrainConfig)
    lines = bytes_of(sys.stdin) if config.data == "-" else None
    try:
        with run.observer as observer:
            result = api.stream(
                run.bank,
                config,
                lines=lines,
                init=run.config(InitConfig),
                prefix=prefix,
                resume=resume,
                found=lambda task: run.output.item(task, _line(task)),
                observer=observer,
            )
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted",
            unchanged="the tasks that were found are in the bank, the rows since then are not",
            hint="the same command with --resume resumes behind the last task",
        ) from None
    run.output.item(result, _summary(run, result))


def _line(task: FoundTask) -> str:
    new = f", new labels {safe(', '.join(task.new_labels))}" if task.new_labels else ""
    why = "the loss is flat" if task.plateau else "the stream ended"
    accuracy = f"accuracy {task.accuracy:.4f} [{task.low:.4f}, {task.high:.4f}] on {task.eval_rows} rows"
    return f"{safe(task.name)}: rows {task.first_row} to {task.last_row} ({why}), {accuracy}{new}"


def _summary(run: Run, result: StreamResult) -> str:
    left = f"; the last {result.left_over} are in no task" if result.left_over else ""
    head = f"found {len(result.tasks)} tasks in {result.rows} rows{left}"
    return f"{head}\n{run.output.next(Command('predict', 'TEXT'), Command('eval', '--forgetting-matrix'))}"
