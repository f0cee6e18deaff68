"""``lorabank compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lorabank.core.escaping import safe
from lorabank_cli.completion import complete_names
from lorabank_cli.render.text import pairs, table, terminal_width
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.workflows.results import CompareResult

_RELATIONS = {
    "same factors": "the same factors: one of them is a copy",
    "same delta weights": "the same delta weights with other factors: one of them can be removed",
    "different": "different adapters",
}


@verb("compare", examples=("compare sentiment spam", "compare sentiment spam --json"))
@click.argument("one", shell_complete=complete_names, help="A task.")
@click.argument("other", shell_complete=complete_names, help="Another task.")
def compare(run: Run, one: str, other: str) -> None:
    """Compare the adapters of two tasks.

    The overlap of two spaces is the mean squared cosine of their principal angles: of what the adapters read (the rows
    of A) and of what they write (the columns of B). The interference is the cosine of the delta weights: 0 if neither
    disturbs the other, negative if they cancel.
    """
    from lorabank import api

    result = api.compare(run.bank, one, other)
    run.output.data(result, _text(result))


def _text(result: CompareResult) -> str:
    modules = result.details.modules
    alone = [f"{len(names)} of {safe(task)}" for task, names in result.only.items() if names]
    facts = [
        ("relation", _RELATIONS[result.relation]),
        ("interference", result.interference),
        ("overlap of inputs", _beside(result.input_overlap, result.random_input_overlap)),
        ("overlap of outputs", _beside(result.output_overlap, result.random_output_overlap)),
        ("sizes", " and ".join(f"{norm:.4f}" for norm in result.details.norms)),
        ("modules", f"{len(modules)} in common" + (f", alone {', '.join(alone)}" if alone else "")),
    ]
    head = ("module", "inputs", "smallest angle", "outputs", "smallest angle", "interference")
    rows = [
        (
            name,
            module.inputs.overlap,
            _degrees(module.inputs.cosines),
            module.outputs.overlap,
            _degrees(module.outputs.cosines),
            module.cosine,
        )
        for name, module in modules.items()
    ]
    grid = [table(head, rows, limit=terminal_width())] if rows else []
    return "\n\n".join([f"{safe(result.one)} and {safe(result.other)}\n{pairs(facts)}", *grid])


def _beside(overlap: float | None, random: float | None) -> str | None:
    """``0.0312 (random spaces: 0.0104)``."""
    return None if overlap is None else f"{overlap:.4f} (random spaces: {random:.4f})"


def _degrees(cosines: tuple[float, ...]) -> str:
    """The smallest principal angle."""
    import math

    return f"{math.degrees(math.acos(cosines[0])):.1f}°" if cosines else ""
