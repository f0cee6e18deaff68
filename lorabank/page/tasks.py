"""One task or composition with what is known of it, and its note."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response
from markupsafe import Markup

from lorabank.components.tables import bar
from lorabank.core.errors import ConfigError
from lorabank.core.records import AS_TRAINED
from lorabank.evaluation.reporting.pictures import confusion_picture, curve_picture
from lorabank.models.facts.curves import LearningCurve
from lorabank.page.errors import PageError
from lorabank.page.facts import Facts
from lorabank.page.rendering import page
from lorabank.page.security import PREFIX, Changing, SentForm
from lorabank.workflows.show import show

router = APIRouter()

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
        chart=None if curve is None else curve_picture(LearningCurve.of(curve), name),
        labels=labels,
        confusion=labels
        and confusion_picture(labels, f"Evaluation rows of {name} by wanted and answered label", recall=True),
    )


@router.post("/note/{name:path}", dependencies=[Changing])
async def note(request: Request, name: str, form: SentForm) -> Response:
    """Write the note of a task or composition; an empty one is removed."""
    facts: Facts = request.app.state.facts
    try:
        await run_in_threadpool(facts.bank.set_note, name, form.get("note", "").strip() or None)
    except ConfigError as error:
        raise PageError(422, error.message) from error
    return RedirectResponse(f"{PREFIX}/named/{quote(name)}", 303)


def _scores(shown: dict[str, Any]) -> list[tuple[dict[str, Any], Markup]]:
    """The newest stored scores, each with its bar."""
    return [(one, bar(one["value"], one["low"], one["high"])) for one in shown["scores"][-_MOST_ROWS:]]
