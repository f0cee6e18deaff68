"""The tables that the programme prints and writes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from tests.faults.programme import Catch, Result

HEADER = ("test", "what", "tries", "lost", "damaged", "uncaught", "seconds")


def result_row(result: Result) -> tuple[str, ...]:
    """One line of the first table."""
    outcome = result.outcome
    if outcome.skipped:
        return result.name, result.what, f"skipped: {outcome.skipped}", "", "", "", f"{result.seconds:.0f}"
    counts = (outcome.tries, outcome.lost, outcome.damaged, outcome.uncaught)
    return result.name, result.what, *(f"{count:,}" for count in counts), f"{result.seconds:.0f}"


def catch_row(catch: Catch) -> tuple[str, ...]:
    """One line of the second table."""
    return catch.mutant.name, catch.harness or "NOT CAUGHT", catch.example[:100], f"{catch.seconds:.0f}"


def line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Cells in columns, for a terminal."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)).rstrip()


def markdown(level: str, seed: int, results: Sequence[Result], catches: Sequence[Catch]) -> str:
    """Both tables and the notes, as a page."""
    parts = [f"# Fault programme: {level}, seed {seed}", _table(HEADER, [result_row(result) for result in results])]
    notes = [f"- {result.name}: {'; '.join(result.outcome.notes)}" for result in results if result.outcome.notes]
    parts.append("\n".join(notes))
    parts += [f"- {result.name} found: {example}" for result in results for example in result.outcome.examples]
    parts.append(_table(("mutant", "caught by", "how", "seconds"), [catch_row(catch) for catch in catches]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines: list[Sequence[str]] = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)


def as_json(level: str, seed: int, results: Sequence[Result], catches: Sequence[Catch]) -> str:
    """Everything, for a machine."""
    content = {
        "level": level,
        "seed": seed,
        "results": [dataclasses.asdict(result) for result in results],
        "mutants": [
            {"name": c.mutant.name, "caught_by": c.harness, "example": c.example, "seconds": c.seconds}
            for c in catches
        ],
    }
    return json.dumps(content, indent=2) + "\n"
