"""One HTML file about several results: of banks, or of a sequence with its orders and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from lorabank.components.frame import Ids, count
from lorabank.evaluation.reporting.compared import Against, Result
from lorabank.evaluation.reporting.measured import Measured
from lorabank.evaluation.reporting.page import comparison, page
from lorabank.evaluation.reporting.subjects import section


@dataclass(frozen=True)
class Source:
    """A bank or a sequence whose results are compared.

    Attributes:
        name: What it is called.
        facts: What a reader of its numbers must know: name and value.
        results: What was measured in it.
        measured: Title and subject of each matrix that is shown.
        orders: A table about the order of its tasks, or None.
        warning: Said in its section where its scores mean little; else None.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    results: Sequence[Result]
    measured: Sequence[tuple[str, Measured]]
    orders: Markup | None = None
    warning: str | None = None


def render_comparison(sources: Sequence[Source], tests: Sequence[Against], *, created_at: str, version: str) -> str:
    """Render the report.

    Args:
        sources: With one result at least.
        tests: Of the results after the first against the first.
        created_at: When the report was made.
        version: The version of lorabank that made it.

    Returns:
        A whole HTML document without any reference to another file.
    """
    ids = Ids("results")
    results = [result for source in sources for result in source.results]
    parts: list[dict[str, Any]] = [
        {
            "id": ids(source.name),
            "source": source,
            "sections": [section(one, ids, name) for name, one in source.measured],
        }
        for source in sources
    ]
    compared = comparison(results, tests)
    title = f"{count(len(results), 'result')} of {' and '.join(_names([source.name for source in sources]))}"
    return page(
        "several.html.j2",
        headline=compared.pop("best"),
        compared={**compared, "best": None},
        sources=parts,
        document=title,
        created_at=created_at,
        version=version,
    )


def _names(names: Sequence[str]) -> list[str]:
    """Few are named, many counted."""
    return [*names] if len(names) <= 3 else [*names[:2], f"{len(names) - 2} others"]
