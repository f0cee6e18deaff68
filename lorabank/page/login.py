"""A browser shows the server's token once, and gets a session."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from lorabank.page.rendering import page
from lorabank.page.security import PREFIX, SentForm, Sessions, check_origin, cookie_header, read_form, session_of

router = APIRouter()


@router.get("/login")
def ask(request: Request) -> Response:
    """The form that asks for the token; a browser that has a session needs none."""
    return (
        RedirectResponse(f"{PREFIX}/", 303)
        if session_of(request)
        else page(request, "login.j2", whole=True, problem="")
    )


@router.post("/login")
async def log_in(request: Request) -> Response:
    """Give a session for the token."""
    sessions: Sessions = request.app.state.sessions
    check_origin(request)
    form = await read_form(request)
    if not sessions.fits(form.get("token", "").strip()):
        return page(request, "login.j2", status=401, problem="This is not the token of this server.")
    return _home(request, sessions.new())


@router.post("/logout")
def log_out(request: Request, form: SentForm) -> Response:
    """End the session of this browser."""
    return _home(request, "")


def _home(request: Request, cookie: str) -> Response:
    return RedirectResponse(f"{PREFIX}/", 303, headers={"set-cookie": cookie_header(cookie, request.scope)})
