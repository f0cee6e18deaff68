"""What a browser is believed: the cookie of a session, where a form came from, and what a page may load.

A session is a cookie with a random part and its HMAC. The key is made of the server's token, so a cookie lasts no
longer than the token and never holds it; without a token the key is random. The cookie is HttpOnly and
SameSite=Strict, and opens the page alone: endpoints of the API ask for the token. Every form holds another HMAC of its
session's cookie.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from fastapi import Depends, Request
from fastapi.responses import RedirectResponse, Response

from lorabank.core.commands import Command
from lorabank.page.errors import PageError
from lorabank.serving.limits import App, Message, Receive, Scope, Send, refuse

COOKIE = "lorabank"
"""Name of the cookie, with the port behind it."""
PREFIX = "/page"
LOGIN = f"{PREFIX}/login"
OPEN = (LOGIN, f"{PREFIX}/static/")
"""What a browser without a session may see."""

_HOURS = 12
"""How long a session lasts."""
_MOST_FIELDS = 200
_SHOWN = 100
"""Characters of a header that are shown."""

HEADERS = {
    "content-security-policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Those of every answer."""


class Sessions:
    """Cookies that this server gave.

    Args:
        token: The server's token; None where it has none.
    """

    def __init__(self, token: str | None) -> None:
        self._token = token
        secret = secrets.token_bytes(32) if token is None else token.encode()
        self._key = hashlib.sha256(b"lorabank page\0" + secret).digest()

    @property
    def needs_token(self) -> bool:
        """Whether a browser must log in."""
        return self._token is not None

    def fits(self, token: str) -> bool:
        """Whether this is the server's token; compared in constant time."""
        return self._token is not None and hmac.compare_digest(token.encode(), self._token.encode())

    def new(self) -> str:
        """The cookie of a new session."""
        begun = f"{int(time.time())}.{secrets.token_urlsafe(18)}"
        return f"{begun}.{self._mac('session', begun)}"

    def known(self, cookie: str) -> bool:
        """Whether this server gave this cookie, and not too long ago."""
        begun, _, mac = cookie.rpartition(".")
        if not hmac.compare_digest(mac.encode(), self._mac("session", begun).encode()):
            return False
        return 0 <= time.time() - int(begun.partition(".")[0]) < _HOURS * 3600

    def form_token(self, cookie: str) -> str:
        """What every form of a session holds."""
        return self._mac("form", cookie)

    def _mac(self, use: str, text: str) -> str:
        return hmac.new(self._key, f"{use}\0{text}".encode(), hashlib.sha256).hexdigest()


class Door:
    """Which callers without the token come to the page: browsers with a session.

    Args:
        sessions: The cookies.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def __call__(self, scope: Scope) -> Response | None:
        """What a caller without the token gets in place of an answer; None lets it in.

        Raises:
            CallError: The path is not one of the page.
        """
        path = scope["path"]
        if not of_page(path):
            return refuse(scope)
        if path == LOGIN or path.startswith(OPEN[1]) or self._sessions.known(cookie_of(scope)):
            return None
        return RedirectResponse(LOGIN, 303, headers=HEADERS)


def of_page(path: str) -> bool:
    """Whether a path is one of the page; the server's root leads to it."""
    return path in ("/", PREFIX) or path.startswith(f"{PREFIX}/")


def guarded(app: App, sessions: Sessions) -> App:
    """An application whose answers have the headers of the page, and whose callers have a session.

    A session is made here only where no token is needed.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        cookie, fresh = cookie_of(scope), False
        if not sessions.known(cookie):
            cookie, fresh = ("", False) if sessions.needs_token else (sessions.new(), True)
        scope["lorabank.session"] = cookie

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                added = HEADERS | ({} if b"cache-control" in present else {"cache-control": "no-store"})
                found = [(name.encode(), value.encode()) for name, value in added.items()]
                if fresh:
                    found.append((b"set-cookie", cookie_header(cookie, scope).encode()))
                message["headers"] = [*message["headers"], *found]
            await send(message)

        await app(scope, receive, sending)

    return answer


def cookie_header(cookie: str, scope: Scope) -> str:
    """A header that gives a browser the cookie of its session; with an empty one, takes it back."""
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    lasts = _HOURS * 3600 if cookie else 0
    return f"{_cookie_name(scope)}={cookie}; Path={PREFIX}; Max-Age={lasts}; HttpOnly; SameSite=Strict{secure}"


def cookie_of(scope: Scope) -> str:
    """The cookie that a call brings; empty where there is none."""
    for name, value in scope["headers"]:
        if name == b"cookie":
            try:
                found = SimpleCookie(value.decode("latin-1")).get(_cookie_name(scope))
            except CookieError:
                continue
            if found is not None:
                return found.value
    return ""


def _cookie_name(scope: Scope) -> str:
    """The name of the cookie: browsers give the cookies of a host to the servers on all of its ports."""
    _, _, port = dict(scope["headers"]).get(b"host", b"").decode("latin-1").rpartition(":")
    return f"{COOKIE}-{port}" if re.fullmatch("[0-9]{1,5}", port) else COOKIE


def session_of(request: Request) -> str:
    """The cookie of the session that a call belongs to."""
    return str(request.scope.get("lorabank.session", ""))


def check_origin(request: Request) -> None:
    """Refuse what another site's page sends.

    Raises:
        PageError: The browser says that it does.
    """
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    if origin is not None and _host(origin) != host:
        raise PageError(
            403,
            "a form of another site is not accepted",
            hint=f"the form is of {origin[:_SHOWN]}, and the header Host names {host[:_SHOWN]}; "
            "a reverse proxy must pass Host on as the browser sent it",
        )
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise PageError(403, "a form of another site is not accepted")


def _host(origin: str) -> str | None:
    """The host of an origin with its port; None of what is not an origin."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def check_sender(request: Request, form_token: str) -> None:
    """Refuse a form that was not sent from this page in this session.

    Raises:
        PageError: Its origin is another site, or its token belongs to no form of this session.
    """
    check_origin(request)
    sessions: Sessions = request.app.state.sessions
    expected = sessions.form_token(session_of(request))
    if not hmac.compare_digest(form_token.encode(), expected.encode()):
        raise PageError(403, "this form is too old: reload the page and send it again")


async def read_form(request: Request) -> Mapping[str, str]:
    """The fields of a form, wherever it was sent from; of a name that stands twice the last.

    A browser sends each line end of a text as CR LF; here it is LF again.

    Raises:
        PageError: The body is not such a form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise PageError(415, "the body is not a form")
    try:
        text = (await request.body()).decode("ascii")
        fields = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise PageError(400, "the form cannot be read") from None
    return {name: value.replace("\r\n", "\n") for name, value in fields}


async def sent_form(request: Request) -> Mapping[str, str]:
    """The fields of a form that was sent from this page.

    Raises:
        PageError: As `read_form` and `check_sender`.
    """
    form = await read_form(request)
    check_sender(request, form.get("form_token", ""))
    return form


def check_changes(request: Request) -> None:
    """Refuse a change where the page only reads.

    Raises:
        PageError: It does.
    """
    if not request.app.state.config.allow_changes:
        raise PageError(
            403,
            "this page only reads: nothing was changed",
            hint="start the server again with",
            commands=(Command("serve", "--page", "--allow-changes"),),
        )


SentForm = Annotated[Mapping[str, str], Depends(sent_form)]
"""A parameter of an endpoint: the checked fields of its form."""

Changing = Depends(check_changes)
"""A dependency of every endpoint that changes the bank."""
