"""The first page: the tasks, adapters and compositions of the bank, their lineage, and the room that is left."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lorabank.bank.room import in_words, room_left
from lorabank.bank.snapshot import Snapshot
from lorabank.components.tables import bar
from lorabank.core.errors import LorabankError
from lorabank.evaluation.reporting.facts import trained_rows
from lorabank.evaluation.reporting.pictures import lineage_picture
from lorabank.page.rendering import page
from lorabank.serving.errors import call_error
from lorabank.serving.served import Served
from lorabank.workflows.results import MatrixReport

router = APIRouter()


@router.get("/")
def overview(request: Request) -> Response:
    """The bank at a glance."""
    served: Served = request.app.state.served
    snapshot = served.catalogue.look()
    reports, problem = [], ""
    try:
        reports = request.app.state.facts.reports()
    except LorabankError as error:  # for example of a composition whose package is not installed
        served.engine.report("the stored scores cannot be shown", error)
        problem = call_error(error).message
    room = room_left(snapshot)
    return page(
        request,
        "overview.j2",
        snapshot=snapshot,
        base=served.catalogue.bank()["base"],
        tasks=_tasks(snapshot, reports[0] if reports else None),
        reports=reports,
        problem=problem,
        room=room and in_words(room),
        revision=served.catalogue.revision,
        graph=lineage_picture(snapshot),
    )


def _tasks(snapshot: Snapshot, first: MatrixReport | None) -> list[dict[str, Any]]:
    """Each task with its adapter, and its score after the last task with a bar."""
    rows = trained_rows(snapshot, first)
    ends = (
        {} if first is None else dict(zip(first.tasks, zip(first.low[-1], first.high[-1], strict=True), strict=True))
    )
    return [row | {"bar": bar(row["score"], *ends.get(row["task"].name, (None, None)))} for row in rows]
