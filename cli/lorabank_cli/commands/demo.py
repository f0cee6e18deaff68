"""``lorabank demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lorabank.core.commands import Command
from lorabank.core.escaping import safe
from lorabank_cli.options import Finite
from lorabank_cli.render.text import table
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.workflows.results import DemoResult


@verb("demo", examples=("demo", "demo ./try --epochs 1"))
@click.argument("target", default="lorabank-demo", help="Folder to write; an interrupted demo is resumed there.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything.")
@click.option("--epochs", type=Finite(min=0, min_open=True), help="Passes over each task's rows.")
def demo(run: Run, target: str, seed: int, epochs: float | None) -> None:
    """Run the whole workflow on four small tasks.

    The demo trains sentiment, spam, products and tweets one after another, plainly and with O-LoRA, composes them in
    three ways and shows what was forgotten. It takes less than ten minutes on two cores.
    """
    from lorabank import api
    from lorabank.core.errors import ConfigError
    from lorabank_cli.failures import Interrupted
    from lorabank_cli.render.progress import ConsoleObserver

    if named := run.flags(["bank"]):
        raise ConfigError(
            f"demo makes banks of its own and does not use {named[0]}",
            hint=f"leave {named[0]} out; the folder that they are made in is given as the argument TARGET",
            unchanged="nothing was changed",
        )
    try:
        with ConsoleObserver(run.output, lines=0, lasting=True) as observer:
            result = api.demo(target, seed=seed, epochs=epochs, observer=observer)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted", unchanged="what was done is kept", hint="the same command resumes from there"
        ) from None
    run.output.data(result, _text(run, target, result))


def _text(run: Run, target: str, result: DemoResult) -> str:
    """The short table, what it shows, then where everything lies."""
    from lorabank.demo.table import CAPTION, EXPLANATION, lesson, short

    titles, rows = short(result.rows)
    return "\n".join(
        [
            CAPTION,
            "",
            table(titles, rows),
            "",
            *EXPLANATION,
            "",
            *lesson(result.rows),
            "",
            f"every metric, the heat-maps, the report and the banks are in {safe(target)} ({result.seconds:.0f} s):",
            *(f"  {safe(path)}" for path in result.paths),
            run.output.next(Command("--bank", f"{target}/olora", "predict", "A wonderful, moving film.")),
        ]
    )
