"""One HTML file about a bank: what is in it, where it came from, what was measured. It opens without a network.

Everything that a user or a file could have named is escaped; the page may load nothing and run nothing (its content
security policy says so), so a report can be mailed and opened without a second thought.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Protocol

from lorabank.bank.room import in_words, room_left
from lorabank.bank.snapshot import Snapshot
from lorabank.core.escaping import safe
from lorabank.core.methods import values_of
from lorabank.core.records import AdapterRecord, CompositionRecord, TaskRecord
from lorabank.core.task_kinds import task_kind
from lorabank.data.methods import recorded_scoring
from lorabank.evaluation.confusion import LabelScores
from lorabank.evaluation.environments import mixed
from lorabank.evaluation.matrix import ScoreMatrix
from lorabank.evaluation.plots.curve import curve_svg
from lorabank.evaluation.plots.heatmap import heatmap_svg
from lorabank.evaluation.plots.learning import learning_svg
from lorabank.evaluation.plots.tasks import task_svg
from lorabank.evaluation.scoring import ACCURACY
from lorabank.evaluation.text_samples import TextScores, metric_of
from lorabank.models.facts.curves import LearningCurve

_MOST_LABELS = 50
"""Of a task whose labels are listed; the scores of the others are in ``eval --json``."""
_MOST_COLUMNS = 12
"""Labels of a confusion matrix that is shown whole."""
MOST_CURVES = 24
"""Trainings that are drawn, the last ones; `show` draws each."""
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
    def labels(self) -> Mapping[str, LabelScores]:
        """Task to how the rows of each label were answered after the last stage."""

    @property
    def environments(self) -> Sequence[Mapping[str, Any]]:
        """In which environments the cells were computed."""

    @property
    def texts(self) -> Mapping[str, TextScores]:
        """Task to how its rows were answered in free text."""

    @property
    def routing(self) -> Mapping[str, Any] | None:
        """``oracle``, ``routed``, ``accuracy``, ``confusion`` [T, T] and ``tasks``, for a routed subject."""


def render_report(
    snapshot: Snapshot,
    measured: Sequence[Measured],
    *,
    curves: Mapping[str, LearningCurve] = MappingProxyType({}),
    more_curves: bool = False,
    created_at: str,
    version: str,
) -> str:
    """Render the report.

    Args:
        snapshot: The bank.
        measured: Evaluated subjects, each shown as a heat-map with its scalars.
        curves: Task to how it was trained, of the trainings that are drawn.
        more_curves: Whether there are others.
        created_at: When the report was made.
        version: The version of lorabank that made it.

    Returns:
        A whole HTML document without any reference to another file.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.finalize = _visible
    environment.filters |= _FILTERS
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    tasks = _task_rows(snapshot, measured[0] if measured else None)
    room = room_left(snapshot)
    named: tuple[TaskRecord | CompositionRecord, ...] = (*snapshot.tasks, *snapshot.compositions)
    return template.render(
        snapshot=snapshot,
        tasks=tasks,
        room=room and in_words(room),
        remarked=[one for one in named if one.note or one.tags],
        sections=[_section(one) for one in measured],
        summary=_SUMMARY,
        headline=_headline(measured[0]) if measured else None,
        warnings=[note for one in measured if (note := _chance(one))],
        settings=sorted({name for row in tasks for name in row["adapter"].config}),
        trained=_trained(snapshot, curves),
        more_curves=more_curves,
        most_labels=_MOST_LABELS,
        most_columns=_MOST_COLUMNS,
        created_at=created_at,
        version=version,
    )


def _trained(snapshot: Snapshot, curves: Mapping[str, LearningCurve]) -> list[Any]:
    """The drawings of the trainings, in sequence order."""
    from markupsafe import Markup

    names = [task.name for task in snapshot.tasks if task.name in curves]
    drawings = (learning_svg(curves[name], name) for name in names)
    return [Markup(svg) for svg in drawings if svg]  # the makers of drawings have escaped every text in them


def _headline(one: Measured) -> str | None:
    """The first subject in a sentence: average, forgetting and the worst task; None before anything is whole."""
    last = {task: value for task, value in zip(one.tasks, one.values[-1], strict=True) if _is_number(value)}
    if len(last) < len(one.tasks):
        return None
    worst = min(last, key=lambda task: float(last[task]))
    average = one.scalars.get("average_accuracy")
    parts = [f"{one.subject}: average {_named(one.metric)} {_score(average)} after {_count(len(last), 'task')}"]
    forgotten = one.scalars.get("forgetting")
    if _is_number(forgotten):
        parts.append(f"forgetting {_score(forgotten)}")
    if len(last) > 1:
        parts.append(f"the worst task is {worst} with {_score(last[worst])}")
    return "; ".join(parts) + "."


def _chance(one: Measured) -> str | None:
    """Which tasks of a subject are not above chance; None where all are."""
    low = [task for task, scores in one.labels.items() if scores.chance_note]
    if not low:
        return None
    listed = ", ".join(low[:8]) + (f" and {len(low) - 8} more" if len(low) > 8 else "")
    return f"{one.subject}: not clearly above chance on {_count(len(low), 'task')} of {len(one.labels)} ({listed})."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _task_rows(snapshot: Snapshot, first: Measured | None) -> list[dict[str, Any]]:
    """Each task with its adapter, the tasks whose adapters were active while it was trained, and its score."""
    task_of = {digest: adapter.task for digest, adapter in snapshot.adapters.items()}
    scores = dict(zip(first.tasks, first.values[-1], strict=True)) if first else {}
    rows = []
    for task in snapshot.tasks:
        adapter = snapshot.adapter_of(task.name)
        context = [task_of.get(digest, digest[:12]) for digest in adapter.context]
        labels = first.labels.get(task.name) if first else None
        asked = _asked(task, adapter)
        row = {"task": task, "adapter": adapter, "context": context, "asked": asked, "score": scores.get(task.name)}
        row |= {"macro_f1": labels and labels.macro_f1, "metric": asked["metric"] if asked else ACCURACY}
        rows.append(row)
    return rows


def _asked(task: TaskRecord, adapter: AdapterRecord) -> dict[str, Any] | None:
    """How a language model is asked and scored; None for a classifier, which has no such choice."""
    if task_kind(task.task_type).labelled:
        return None
    scoring = adapter.config["scoring"]
    settings = values_of(recorded_scoring(adapter.config))
    return {
        "form": adapter.config["format"],
        "scoring": scoring,
        "metric": metric_of(scoring, adapter.metrics),
        "max_length": adapter.config["max_length"],
        "settings": ", ".join(f"{name} {value}" for name, value in settings.items()),
    }


def _section(one: Measured) -> dict[str, Any]:
    from markupsafe import Markup

    matrix = ScoreMatrix(tuple(one.tasks), one.values, one.counts, one.low, one.high, _named(one.metric))
    title = f"{one.subject} ({one.mode})" if one.mode != one.subject else one.subject
    # matplotlib and the makers of the drawings have escaped every text in them.
    svg, curve, by_task = Markup(heatmap_svg(matrix)), curve_svg(matrix), task_svg(matrix)
    return {
        "measured": one,
        "matrix": matrix,
        "title": title,
        "svg": svg,
        "curve": curve and Markup(curve),
        "by_task": by_task and Markup(by_task),
        "mixed": mixed(one.environments),
        "labels": one.labels,
    }


def _visible(value: Any) -> Any:
    """Show what cannot be seen by its escape; applied to every value that the template prints."""
    if type(value) is not str:
        return value
    return re.sub(r"[^\t\n]+", lambda found: safe(found[0]), value)


def _score(value: float | None, decimals: int = 3) -> str:
    """A number, or an en dash where there is none."""
    return f"{value:.{decimals}f}" if value is not None and _is_number(value) else "–"


def _is_number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _moment(text: str) -> str:
    """A time to the minute: ``2030-01-02 03:04 UTC``; another text as it is."""
    found = re.match(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)\S*(Z|\+00:00)$", text)
    return f"{found[1]} {found[2]} UTC" if found else text


def _confusions(scores: LabelScores) -> list[tuple[str, str, int]]:
    """The commonest confusions, at most ten."""
    return sorted((one for one in scores.confusion if one[0] != one[1]), key=lambda one: -one[2])[:10]


def _matrix(scores: LabelScores) -> list[tuple[str, list[int]]]:
    """Each wanted label with the rows that were answered with each name."""
    counts = {(wanted, answered): rows for wanted, answered, rows in scores.confusion}
    return [(one.label, [counts.get((one.label, name), 0) for name in scores.names]) for one in scores.labels]


def _setting(value: Any) -> str:
    if value is None or value == "":
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


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


_FILTERS: dict[str, Any] = {
    "score": _score,
    "short": _short,
    "pairs": _pairs,
    "named": _named,
    "moment": _moment,
    "confusions": _confusions,
    "matrix": _matrix,
    "setting": _setting,
}
