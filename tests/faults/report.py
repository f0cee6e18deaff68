"""The tables that the programme prints and writes."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

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


@dataclass
class Report:
    """A run of the programme, as far as it has come.

    Attributes:
        level: Of the counts.
        seed: What is chosen at random follows from it.
        results: A line each of the first table.
        catches: A line each of the second.
        began: When it began, for the date and the duration.
    """

    level: str
    seed: int
    results: list[Result] = field(default_factory=list)
    catches: list[Catch] = field(default_factory=list)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def findings(self) -> int:
        """What must not be, of all harnesses."""
        return sum(result.outcome.findings for result in self.results)

    @property
    def missed(self) -> list[str]:
        """Mutants that no harness caught, those left aside that need what this machine lacks."""
        return [one.mutant.name for one in self.catches if one.harness is None and "skipped" not in one.example]

    @property
    def verdict(self) -> str:
        """Both in one line."""
        return f"{self.findings} findings, {len(self.missed)} of {len(self.catches)} mutants missed"

    def markdown(self) -> str:
        """Both tables and the notes, as a page."""
        seconds = (datetime.now(UTC) - self.began).total_seconds()
        cores = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
        parts = [
            f"# Fault programme: {self.level}, seed {self.seed}",
            f"{self.began.date().isoformat()}, {seconds / 60:.0f} minutes on {cores}: {self.verdict}.",
            _table(HEADER, [result_row(result) for result in self.results]),
        ]
        notes = [f"- {one.name}: {'; '.join(one.outcome.notes)}" for one in self.results if one.outcome.notes]
        parts.append("\n".join(notes))
        parts += [f"- {one.name} found: {example}" for one in self.results for example in one.outcome.examples]
        parts.append(_table(("mutant", "caught by", "how", "seconds"), [catch_row(catch) for catch in self.catches]))
        return "\n\n".join(part for part in parts if part) + "\n"

    def as_json(self) -> str:
        """Everything, for a machine."""
        content = {
            "level": self.level,
            "seed": self.seed,
            "date": self.began.date().isoformat(),
            "results": [asdict(result) for result in self.results],
            "mutants": [
                {"name": one.mutant.name, "caught_by": one.harness, "example": one.example, "seconds": one.seconds}
                for one in self.catches
            ],
        }
        return json.dumps(content, indent=2) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines: list[Sequence[str]] = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)
