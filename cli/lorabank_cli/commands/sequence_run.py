"""``lorabank sequence run``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from lorabank.core.commands import Command
from lorabank.core.escaping import safe
from lorabank_cli.render.text import named, pairs, table, terminal_width
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.sequences.results import Interval, SequencePlan, SequenceResult

TITLES = {"routing_accuracy": "routed right"}


@verb(
    "run",
    dry_run=True,
    examples=(
        "sequence run experiment.toml --dry-run",
        "sequence run experiment.toml",
        "sequence run experiment.toml --size small --out ./try",
        "sequence run experiment.toml --dev --only olora --json",
    ),
)
@click.argument("file", help="TOML file with tasks, orders, strategies, compositions and seeds.")
@click.option("--out", metavar="DIR", help="Folder of banks and results; default: the experiment's name.")
@click.option("--size", metavar="NAME", help="Apply the file's table [sizes.NAME] on top of the rest.")
@click.option("--dev", is_flag=True, help="Score on the rows that settings are chosen on, in a folder of their own.")
@click.option("--only", multiple=True, metavar="STRATEGY", help="Run this strategy; may be repeated; default: all.")
def run_sequence(run: Run, file: str, out: str | None, size: str | None, dev: bool, only: tuple[str, ...]) -> None:
    """Run the experiment of a TOML file, or resume it.

    Every strategy learns every order of the tasks once for each seed, each in a bank of its own; compositions are
    made, everything is scored, and one table of means and intervals stands below the protocol card that it needs.
    What is done is not done again: the same command resumes an interrupted run.
    """
    from lorabank import api
    from lorabank_cli.failures import Interrupted

    if run.dry_run:
        with run.observer as observer:
            plan = api.plan_sequence(file, out=out, size=size, dev=dev, only=only, observer=observer)
        run.output.data({"dry_run": True, "plan": plan}, _planned(plan))
        return
    try:
        with run.observer as observer:
            result = api.run_sequence(file, out=out, size=size, dev=dev, only=only, observer=observer)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted", unchanged="what was done is kept", hint="the same command resumes from there"
        ) from None
    run.output.data(result, _text(run, result))


def _planned(plan: SequencePlan) -> str:
    header = ("order", "strategy", "seed", "learnt", "to learn", "to compose", "scores")
    rows = [
        (
            cell.order,
            cell.strategy,
            cell.seed,
            ", ".join(cell.learnt),
            ", ".join(f"{task} (resumed)" if task == cell.interrupted else task for task in cell.to_learn),
            ", ".join(cell.to_compose),
            cell.scores,
        )
        for cell in plan.cells
    ]
    parts = [
        f"would run {safe(plan.name)} in {safe(plan.folder)}",
        _card(plan.card_lines),
        table(header, rows, limit=terminal_width()),
        f"{plan.steps} steps to train\n\nnothing was changed",
    ]
    return "\n\n".join(parts)


def _text(run: Run, result: SequenceResult) -> str:
    rows = result.rows
    scalars = [name for name in (rows[0].scalars if rows else ()) if any(row.scalars[name] for row in rows)]
    header = ["trained by", "answered by", "task id", "runs", *(TITLES.get(name, named(name)) for name in scalars)]
    lines = [
        [row.strategy, row.answered, row.task_id, row.runs, *(_mean(row.scalars[name]) for name in scalars)]
        for row in rows
    ]
    if any(row.at_chance for row in rows):
        header.append("at chance")
        lines = [[*line, row.chance] for line, row in zip(lines, rows, strict=True)]
    parts = [
        _card(result.card_lines),
        *([safe(result.warning)] if result.warning else []),
        table(header, lines, limit=terminal_width()),
        "± is half of the 95 % t-interval over orders and seeds; task id routed: a router found the\n"
        "task of each text; oracle: the same with perfect routing; routed right: texts that went to their task",
        *_orders(result),
        f"written to {safe(result.folder)} ({result.seconds:.0f} s):\n"
        + "\n".join(f"  {safe(path)}" for path in result.paths),
        *(run.output.next(Command("report", "--bank", bank, "report.html")) for bank in _banks(result)[:1]),
    ]
    return "\n\n".join(parts)


def _orders(result: SequenceResult) -> list[str]:
    """How the average depends on the order, where there are several."""
    from lorabank.sequences.table import order_cells

    some = [(row, effect) for row in result.rows if (effect := row.orders.get("average_accuracy"))]
    if not some:
        return []
    header = ("trained by", "answered by", "mean over orders", "spread", "due to the order", "worst", "best")
    lines = [[row.strategy, row.answered, *order_cells(effect)] for row, effect in some]
    return [
        "average accuracy by order; spread: standard deviation of the orders' means; due to the order: without the\n"
        "chance of the seeds, of which it takes two or more\n\n" + table(header, lines, limit=terminal_width())
    ]


def _card(lines: Sequence[tuple[str, str]]) -> str:
    return pairs(lines, indent="")


def _mean(value: Interval | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.4f}" if value.half is None else f"{value.mean:.4f} ± {value.half:.4f}"


def _banks(result: SequenceResult) -> list[str]:
    """The banks in the order of the runs; a reference has none."""
    from lorabank.sequences.references.base import NOT_STORABLE

    whole = {row.strategy for row in result.rows if row.mode == NOT_STORABLE}
    stored = (run for run in result.runs if run.strategy not in whole)
    return [f"{result.folder}/banks/order{run.order}/{run.strategy}/seed{run.seed}" for run in stored]
