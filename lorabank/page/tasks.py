"""One task or composition with what is known of it, and its note."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response
from markupsafe import Markup

from lorabank.components.tables import bar, count_table
from lorabank.core.records import AS_TRAINED
from lorabank.evaluation.confusion import LabelScores
from lorabank.models.facts.curves import LearningCurve
from lorabank.page.facts import Facts
from lorabank.page.learning import learning_chart
from lorabank.page.rendering import page
from lorabank.page.security import PREFIX, Changing, SentForm
from lorabank.workflows.show import show

router = APIRouter()

_MOST_LABELS = 12
"""Labels of a confusion table that is shown whole."""
_MOST_ROWS = 50
"""Scores and overlaps that are listed."""


@router.get("/named/{name:path}")
def named(request: Request, name: str) -> Response:
    """A task or composition: they share one set of names."""
    facts: Facts = request.app.state.facts
    shown = show(facts.path, name)
    if "task" not in shown:
        return page(request, "composition.j2", shown=shown, scores=_scores(shown))
    curve = shown["curve"]
    labels = next((one.labels.get(name) for one in facts.reports() if one.subject == AS_TRAINED), None)
    return page(
        request,
        "task.j2",
        shown=shown,
        scores=_scores(shown),
        overlap=[(task, value, bar(value)) for task, value in list(shown["overlap"].items())[:_MOST_ROWS]],
        chart=None if curve is None else learning_chart(LearningCurve.of(curve), name),
        labels=labels,
        confusion=None if labels is None else _confusion(labels, name),
    )


@router.post("/note/{name:path}", dependencies=[Changing])
async def note(request: Request, name: str, form: SentForm) -> Response:
    """Write the note of a task or composition; an empty one is removed."""
    facts: Facts = request.app.state.facts
    await run_in_threadpool(facts.bank.set_note, name, form.get("note", "").strip() or None)
    return RedirectResponse(f"{PREFIX}/named/{quote(name)}", 303)


def _scores(shown: dict[str, Any]) -> list[tuple[dict[str, Any], Markup]]:
    """The newest stored scores, each with its bar."""
    return [(one, bar(one["value"], one["low"], one["high"])) for one in shown["scores"][-_MOST_ROWS:]]


def _confusion(scores: LabelScores, task: str) -> Markup | None:
    """Which labels were answered in place of which; None where they are too many for a table."""
    if len(scores.names) > _MOST_LABELS or scores.unlisted:
        return None
    rows = {(wanted, answered): count for wanted, answered, count in scores.confusion}
    wanted = [one.label for one in scores.labels]
    return count_table(
        wanted,
        scores.names,
        [[rows.get((label, name), 0) for name in scores.names] for label in wanted],
        caption=f"Evaluation rows of {task} by wanted and answered label",
        corner="wanted ↓ answered →",
        ends=[one.recall for one in scores.labels],
        end="recall",
    )
