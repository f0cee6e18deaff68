"""One HTML file about a bank: what is in it, where it came from, what was measured. It opens without a network.

Everything that a user or a file could have named is escaped; the page may load nothing and run nothing (its content
security policy says so), so a report can be mailed and opened without a second thought.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from markupsafe import Markup

from lorabank.bank.room import in_words, room_left
from lorabank.bank.snapshot import Snapshot
from lorabank.components.frame import Ids
from lorabank.core.records import CompositionRecord, TaskRecord
from lorabank.evaluation.reporting.compared import Against, result_of
from lorabank.evaluation.reporting.facts import setting, shared_settings, task_rows
from lorabank.evaluation.reporting.measured import Measured
from lorabank.evaluation.reporting.page import comparison, page
from lorabank.evaluation.reporting.pictures import curve_picture, lineage_picture
from lorabank.evaluation.reporting.subjects import section, title_of
from lorabank.evaluation.reporting.words import chance_warning, headline
from lorabank.models.facts.curves import LearningCurve

MOST_CURVES = 24
"""Trainings that are drawn, the last ones; `show` draws each."""


def render_report(
    snapshot: Snapshot,
    measured: Sequence[Measured],
    *,
    tests: Sequence[Against] = (),
    curves: Mapping[str, LearningCurve] = MappingProxyType({}),
    more_curves: bool = False,
    created_at: str,
    version: str,
) -> str:
    """Render the report.

    Args:
        snapshot: The bank.
        measured: Evaluated subjects.
        tests: Of the subjects after the first, each against the first on the same rows.
        curves: Task to how it was trained, of the trainings that are drawn.
        more_curves: Whether there are others.
        created_at: When the report was made.
        version: The version of lorabank that made it.

    Returns:
        A whole HTML document without any reference to another file.
    """
    ids = Ids("results", "tasks", "notes", "asked", "adapters", "compositions", "data", "base")
    tasks = task_rows(snapshot, measured[0] if measured else None)
    room = room_left(snapshot)
    named: tuple[TaskRecord | CompositionRecord, ...] = (*snapshot.tasks, *snapshot.compositions)
    same, differing = shared_settings([row["adapter"] for row in tasks])
    facts: dict[str, Any] = {
        "compared": comparison([result_of(one, title_of(one)) for one in measured], tests) if measured else None,
        "sections": [section(one, ids) for one in measured],
        "headline": headline(measured[0]) if measured else None,
        "warnings": [note for one in measured if (note := chance_warning(one))],
        "tasks": tasks,
        "lineage": lineage_picture(snapshot),
        "room": room and in_words(room),
        "remarked": [one for one in named if one.note or one.tags],
        "same": same,
        "differing": differing,
        "setting": setting,
        "trained": _trained(snapshot, curves),
        "more_curves": more_curves,
    }
    return page("bank.html.j2", snapshot=snapshot, created_at=created_at, version=version, **facts)


def _trained(snapshot: Snapshot, curves: Mapping[str, LearningCurve]) -> list[Markup]:
    """The pictures of the trainings, in sequence order."""
    names = [task.name for task in snapshot.tasks if task.name in curves]
    return [picture for name in names if (picture := curve_picture(curves[name], name))]
