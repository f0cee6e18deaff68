"""``lorabank sequence tradeoff``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorabank_cli.render.text import table, terminal_width
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.sequences.tradeoff import Tradeoff


@verb(
    "tradeoff",
    examples=("sequence tradeoff bank", "sequence tradeoff bank team/bank --plot tradeoff.png"),
)
@click.argument("folders", nargs=-1, required=True, help="Folders of sequences, or banks.")
@click.option("--plot", metavar="FILE", help="Draw the points and the Pareto front: .png or .svg.")
def tradeoff(run: Run, folders: tuple[str, ...], plot: str | None) -> None:
    """Show what is learnt against what is forgotten.

    Each way to train and to answer is a point: the mean score on each task just after it was learnt, and the mean loss
    on earlier tasks up to the end. The points that no other one beats in both are marked.
    """
    from lorabank import api

    found = api.tradeoff(folders)
    run.output.data(found, _text(found))
    if plot is not None:
        run.output.notice(f"wrote {found.plot().save(Path(plot))}")


def _text(found: Tradeoff) -> str:
    rows = [
        (
            point.name,
            _with(point.learnt, point.learnt_half),
            _with(point.forgotten, point.forgotten_half),
            "*" if k in found.front else "",
        )
        for k, point in enumerate(found.points)
    ]
    grid = table(("result", "learning accuracy", "forgetting", "front"), rows, limit=terminal_width())
    return f"{grid}\n\n* on the Pareto front: no other result learns as much and forgets less"


def _with(mean: float, half: float | None) -> str:
    return f"{mean:.4f}" if half is None else f"{mean:.4f} ± {half:.4f}"
