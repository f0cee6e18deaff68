"""How the tasks were trained: loss and held-out loss by optimizer step."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from markupsafe import Markup

from lorabank.components.charts import Axes, Line, line_chart
from lorabank.models.facts.curves import LearningCurve
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
        if task.name in found and (chart := learning_chart(found[task.name], task.name)) is not None
    ]
    return page(request, "curves.j2", drawn=drawn, more=more)


def learning_chart(curve: LearningCurve, task: str) -> Markup | None:
    """The losses of a training; None where no step is recorded."""
    if not curve.steps:
        return None
    lines = [Line("training", curve.steps, curve.losses)]
    mark = None
    if curve.held is not None:
        lines.append(Line("held-out rows", curve.held.steps, curve.held.losses))
        mark = (float(curve.held.best), f"kept: step {curve.held.best}")
    told = f"From {curve.losses[0]:.3f} to {curve.losses[-1]:.3f} at step {curve.steps[-1]}"
    return line_chart(
        lines, Axes("optimizer step", "loss", mark=mark), caption=f"Loss while {task} was trained", told=told
    )
