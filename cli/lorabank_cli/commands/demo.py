"""``lorabank demo``."""

from __future__ import annotations

from typing import Any

import click

from lorabank_cli.options import Finite
from lorabank_cli.output import plain
from lorabank_cli.text import outline, safe
from lorabank_cli.verb import Run, verb


@verb("demo", examples=("demo", "demo ./try --epochs 1"))
@click.argument("target", default="lorabank-demo", help="Folder to write; made anew [default: lorabank-demo].")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything.")
@click.option("--epochs", type=Finite(min=0, min_open=True), help="Passes over each task's rows.")
def demo(run: Run, target: str, seed: int, epochs: float | None) -> None:
    """Run the whole story on four small tasks.

    Trains sentiment, spam, products and tweets one after another, plainly and with O-LoRA, composes them in three
    ways and shows what was forgotten. Under ten minutes on two cores.
    """
    from lorabank import api

    with run.observer as observer:
        result = api.demo(target, seed=seed, epochs=epochs, observer=observer)
    run.output.data(result, _text(target, plain(result)))


def _text(target: str, result: dict[str, Any]) -> str:
    return f"demo in {safe(target)}\n{outline(result, indent='')}"
