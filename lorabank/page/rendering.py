"""Templates made into pages."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment

from lorabank.components.frame import environment
from lorabank.core.commands import Command
from lorabank.page.security import PREFIX, Sessions, session_of


class Place(NamedTuple):
    """A page of the navigation."""

    title: str
    path: str


NAVIGATION = (
    Place("Overview", f"{PREFIX}/"),
    Place("Try it", f"{PREFIX}/try"),
    Place("Forgetting", f"{PREFIX}/matrix"),
    Place("Routing", f"{PREFIX}/routing"),
    Place("Learning curves", f"{PREFIX}/curves"),
    Place("Compare", f"{PREFIX}/compare"),
    Place("Methods", f"{PREFIX}/methods"),
    Place("Add a task", f"{PREFIX}/jobs"),
)
"""The pages that every page links to, in order."""


@cache
def templates() -> Environment:
    """The templates of the page."""
    made = environment("lorabank.page", "templates")
    made.globals |= {"navigation": NAVIGATION, "prefix": PREFIX}
    return made


_WHOLE = {"hx-retarget": "#main", "hx-reselect": "#main", "hx-reswap": "outerHTML"}
"""Headers by which htmx shows all of an answer where it asked for a part."""


def page(request: Request, template: str, *, status: int = 200, whole: bool = False, **values: Any) -> HTMLResponse:
    """A template as the answer to a request.

    Args:
        request: The request.
        template: Name of the template.
        status: HTTP status.
        whole: Whether all of it is shown to who asked for a part of another page.
        values: What it shows.
    """
    state = request.app.state
    sessions: Sessions = state.sessions
    session = session_of(request)
    shared = {
        "path": request.scope["path"],
        "form_token": sessions.form_token(session) if session else "",
        "logged_in": sessions.needs_token and bool(session),
        "allow_changes": state.config.allow_changes,
        "ready": state.served.engine.ready,
        "typed": lambda *words: Command(*words).line(str(state.facts.path)),
    }
    return HTMLResponse(templates().get_template(template).render(shared | values), status, _WHOLE if whole else None)
