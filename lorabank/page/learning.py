"""How the tasks were trained: loss and held-out loss by optimizer step."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lorabank.evaluation.reporting.pictures import curve_picture
from lorabank.page.rendering import page

router = APIRouter()


@router.get("/curves")
def curves(request: Request) -> Response:
    """The training of each task, in the order in which they were learnt."""
    found, more = request.app.state.facts.curves()
    snapshot = request.app.state.served.catalogue.look()
    drawn = [
        (task.name, chart)
        for task in snapshot.tasks
        if task.name in found and (chart := curve_picture(found[task.name], task.name)) is not None
    ]
    return page(request, "curves.j2", drawn=drawn, more=more)
