"""The first page: the tasks, adapters and compositions of the bank, and the room that is left."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lorabank.bank.room import in_words, room_left
from lorabank.page.rendering import page

router = APIRouter()


@router.get("/")
def overview(request: Request) -> Response:
    """The bank at a glance."""
    served = request.app.state.served
    snapshot = served.catalogue.look()
    room = room_left(snapshot)
    return page(
        request,
        "overview.j2",
        snapshot=snapshot,
        base=served.catalogue.bank()["base"],
        adapters={task.name: snapshot.adapter_of(task.name) for task in snapshot.tasks},
        room=room and in_words(room),
        revision=served.catalogue.revision,
    )
