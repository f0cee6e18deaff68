"""One HTML file about a bank: what is in it, where it came from, what was measured. It opens without a network.

Everything that a user or a file could have named is escaped; the page may load nothing and run nothing (its content
security policy says so), so a report can be mailed and opened without a second thought.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Protocol

from lorabank.bank.snapshot import Snapshot
from lorabank.core.escaping import safe
from lorabank.core.records import AdapterRecord, TaskRecord
from lorabank.evaluation.environments import mixed
from lorabank.evaluation.matrix import ScoreMatrix
from lorabank.evaluation.plots import heatmap_svg
from lorabank.evaluation.scoring import DEFAULT_METRICS

_SUMMARY = ("average_accuracy", "learning_accuracy", "backward_transfer", "forward_transfer", "forgetting")


class Measured(Protocol):
    """What a report needs to know of an evaluated subject; ``lorabank.api.evaluate`` returns such objects."""

    @property
    def subject(self) -> str:
        """``"as-trained"`` or a composition."""

    @property
    def mode(self) -> str:
        """How the adapters answered together."""

    @property
    def task_id(self) -> str:
        """``"given"`` or ``"routed"``."""

    @property
    def metric(self) -> str:
        """What the scores are."""

    @property
    def tasks(self) -> Sequence[str]:
        """T names in sequence order."""

    @property
    def values(self) -> Any:
        """Scores [T + 1, T], None or NaN where missing."""

    @property
    def low(self) -> Any:
        """Lower ends of the intervals [T + 1, T], or None."""

    @property
    def high(self) -> Any:
        """Upper ends."""

    @property
    def counts(self) -> Any:
        """Evaluation rows of each task [T]."""

    @property
    def scalars(self) -> Mapping[str, float | None]:
        """Metric to value."""

    @property
    def environments(self) -> Sequence[Mapping[str, Any]]:
        """In which environments the cells were computed."""

    @property
    def routing(self) -> Mapping[str, Any] | None:
        """``oracle``, ``routed``, ``accuracy``, ``confusion`` [T, T] and ``tasks``, for a routed subject."""


def render_report(snapshot: Snapshot, measured: Sequence[Measured], *, created_at: str, version: str) -> str:
    """Render the report.

    Args:
        snapshot: The bank.
        measured: Evaluated subjects, each shown as a heat-map with its scalars.
        created_at: When the report was made.
        version: The version of lorabank that made it.

    Returns:
        A whole HTML document without any reference to another file.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.finalize = _visible
    filters: dict[str, Any] = {"score": _score, "short": _short, "pairs": _pairs, "named": _named}
    environment.filters |= filters
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        snapshot=snapshot,
        tasks=_task_rows(snapshot),
        sections=[_section(one) for one in measured],
        summary=_SUMMARY,
        created_at=created_at,
        version=version,
    )


def _task_rows(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Each task with its adapter and the tasks whose adapters were active while it was trained."""
    task_of = {digest: adapter.task for digest, adapter in snapshot.adapters.items()}
    rows = []
    for task in snapshot.tasks:
        adapter = snapshot.adapter_of(task.name)
        context = [task_of.get(digest, digest[:12]) for digest in adapter.context]
        rows.append({"task": task, "adapter": adapter, "context": context, "asked": _asked(task, adapter)})
    return rows


def _asked(task: TaskRecord, adapter: AdapterRecord) -> dict[str, Any] | None:
    """How a language model is asked and scored; None for a classifier, which has no such choice."""
    if task.task_type == "SEQ_CLS":
        return None
    scoring = adapter.config["scoring"]
    return {
        "form": adapter.config["format"],
        "scoring": scoring,
        "metric": DEFAULT_METRICS[scoring],
        "max_length": adapter.config["max_length"],
        "max_new_tokens": adapter.config["max_new_tokens"] if scoring == "generation" else None,
    }


def _section(one: Measured) -> dict[str, Any]:
    from markupsafe import Markup

    matrix = ScoreMatrix(tuple(one.tasks), one.values, one.counts, one.low, one.high, _named(one.metric))
    title = f"{one.subject} ({one.mode})" if one.mode != one.subject else one.subject
    # matplotlib has escaped every label in the drawing.
    svg = Markup(heatmap_svg(matrix))
    return {"measured": one, "matrix": matrix, "title": title, "svg": svg, "mixed": mixed(one.environments)}


def _visible(value: Any) -> Any:
    """Show what cannot be seen by its escape; applied to every value that the template prints."""
    if type(value) is not str:
        return value
    return re.sub(r"[^\t\n]+", lambda found: safe(found[0]), value)


def _score(value: float | None, decimals: int = 3) -> str:
    """A number, or an en dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{decimals}f}"


def _short(digest: str | None) -> str:
    return (digest or "")[:12]


def _named(metric: str) -> str:
    """``exact match`` for ``exact_match``, and one word for several metrics."""
    return "mixed scores" if "," in metric else metric.replace("_", " ")


def _pairs(values: Mapping[str, Any]) -> str:
    """``a = 1, b = 2``."""
    return ", ".join(
        f"{key} = {value:g}" if type(value) is float else f"{key} = {value}" for key, value in values.items()
    )
