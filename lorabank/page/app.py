"""The page as a part of the server's application."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response

from lorabank.components.frame import stylesheet
from lorabank.core.errors import LorabankError, NotFoundError
from lorabank.page import learning, login, measured, methods, overview, tasks, trying
from lorabank.page.config import PageConfig
from lorabank.page.errors import PageError
from lorabank.page.facts import Facts
from lorabank.page.jobs import routes as jobs
from lorabank.page.jobs.workshop import Workshop
from lorabank.page.rendering import page
from lorabank.page.security import HEADERS, PREFIX, Door, Sessions, cookie_of, guarded, of_page
from lorabank.serving.app import Part
from lorabank.serving.calls import CallerGone
from lorabank.serving.errors import CallError, call_error
from lorabank.serving.limits import Scope, as_json
from lorabank.serving.served import Served

_STATIC = {
    "page.css": "text/css; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "jobs.js": "text/javascript; charset=utf-8",
}
"""Files that pages load, with their types."""

_FIELDS = 64 << 10
"""Bytes of a form with a file beside the file."""
_SECONDS = 3600
"""How long a browser may keep them."""

router = APIRouter()

_PARTS = (login, overview, tasks, measured, learning, trying, methods, jobs)
"""Modules with endpoints of the page."""


@router.get("/static/{name}")
def static(name: str) -> Response:
    """A file that pages load."""
    if name not in _STATIC:
        raise PageError(404, "there is no such file")
    data = files(__package__).joinpath("static", name).read_text(encoding="utf-8")
    text = stylesheet() + data if name == "page.css" else data
    return Response(text, media_type=_STATIC[name], headers={"cache-control": f"max-age={_SECONDS}"})


def page_of(
    path: str | Path, config: PageConfig, program: Sequence[str] = ("lorabank",)
) -> Callable[[Served, str | None], Part]:
    """The page of a bank, for `lorabank.serving.run.serve`.

    Args:
        path: The bank's folder.
        config: What the page may do.
        program: The words that start the command line, which trains.
    """

    def made(served: Served, token: str | None) -> Part:
        sessions = Sessions(token)
        app = FastAPI(title="lorabank page", docs_url=None, redoc_url=None, openapi_url=None)
        app.state.served, app.state.config, app.state.sessions = served, config, sessions
        app.state.facts = Facts(path)
        app.state.workshop = Workshop.of(app.state.facts.bank, config, program)
        for one in (router, *(part.router for part in _PARTS)):
            app.include_router(one)
        _answer_errors(app)
        bodies = {jobs.UPLOAD: config.max_upload + _FIELDS} if config.allow_changes else {}
        return Part(PREFIX, guarded(app, sessions), Door(sessions), bodies, partial(_refused, app))

    return made


def _answer_errors(app: FastAPI) -> None:
    """Answer every error with a page; those of the server itself are reported too."""

    async def failed(request: Request, error: Exception) -> HTMLResponse:
        if isinstance(error, NotFoundError):
            return _error(request, PageError(404, error.message))
        request.app.state.served.engine.report(f"the page {request.url.path[:200]} failed", error)
        return _error(request, error)

    app.add_exception_handler(PageError, _known)
    app.add_exception_handler(CallError, _known)
    app.add_exception_handler(LorabankError, failed)
    app.add_exception_handler(CallerGone, _gone)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _known)
    app.add_exception_handler(404, _missing)
    app.add_exception_handler(405, _missing)


async def _known(request: Request, error: Exception) -> HTMLResponse:
    return _error(request, error)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _invalid(request: Request, error: Exception) -> HTMLResponse:
    return _error(request, PageError(422, "a part of the address or of the form has another form than expected"))


async def _missing(request: Request, error: Exception) -> HTMLResponse:
    return _error(request, PageError(404, "there is no such page"))


def _refused(app: FastAPI, scope: Scope, error: CallError) -> Response:
    """What a browser is shown of a call that the page does not get; other callers get JSON."""
    if not of_page(scope["path"]):
        return as_json(scope, error)
    sessions: Sessions = app.state.sessions
    cookie = cookie_of(scope)
    session = cookie if sessions.known(cookie) else ""
    answer = _error(Request({**scope, "app": app, "lorabank.session": session}), error)
    answer.headers.update(HEADERS | {"cache-control": "no-store"})
    return answer


def _error(request: Request, error: Exception) -> HTMLResponse:
    if not isinstance(error, PageError):
        known = call_error(error)
        error = PageError(known.status, known.message)
    lines = [one.line(str(request.app.state.facts.path)) for one in error.commands]
    return page(request, "error.j2", status=error.status, whole=True, error=error, lines=lines)
