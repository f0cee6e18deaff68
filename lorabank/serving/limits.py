"""What every call must pass before it is read: the token, the size of its body, and a server that takes calls."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

from fastapi.responses import JSONResponse, Response

from lorabank.serving.config import ServeConfig
from lorabank.serving.errors import CallError, not_serving
from lorabank.serving.metrics import Meter

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

Entrance = Callable[[Scope], Response | None]
"""What a caller without the token gets at a path, for example a form that asks for it; None lets the caller in.

Raises:
    CallError: The path is closed to it.
"""

Refusal = Callable[[Scope, CallError], Response]
"""What answers a call that is refused."""

CLOSING = "lorabank.closing"
"""Where a call finds a function that says whether the server stops: a stream without an end of its own asks it."""

OVER = "lorabank.over"
"""Where a call finds a function that says whether its time is over: work that outlives its call ends itself then."""

OPEN = ("/health", "/ready")
"""Paths that need no token: a supervisor asks them."""

ENDPOINTS = (
    "/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/classify", "/v1/route", "/v1/bank", "/metrics", *OPEN
)  # fmt: skip
"""What is counted by its name; any other path is counted as one."""


class Gate:
    """The outermost layer of the application.

    Args:
        app: The application.
        config: Limits.
        token: What callers must send; None for nothing.
        local: Whether only calls to a loopback name are taken, and none that a browser makes for another site's page.
        meter: Counts.
        entrance: Decides on callers that do not send the token; None refuses them.
        bodies: Path to the maximum size of a body, in bytes, where it is not the one of the settings.
        refusal: Answers calls that are refused here; None for `as_json`.

    Attributes:
        closing: Whether new calls are refused.
        open_calls: Calls under way.
    """

    def __init__(
        self,
        app: App,
        config: ServeConfig,
        token: str | None,
        *,
        local: bool,
        meter: Meter,
        entrance: Entrance | None = None,
        bodies: Mapping[str, int] = MappingProxyType({}),
        refusal: Refusal | None = None,
    ) -> None:
        self.closing = False
        self.open_calls = 0
        self._over = False
        self._unanswered: set[asyncio.Task[Any]] = set()
        self._app, self._config, self._local, self._meter = app, config, local, meter
        self._entrance, self._bodies, self._refusal = entrance or refuse, bodies, refusal or as_json
        self._bearer = None if token is None else f"Bearer {token}".encode()

    def end(self) -> None:
        """Refuse what is under way and has no answer yet, and whatever comes."""
        self.closing = self._over = True
        for call in self._unanswered:
            call.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        scope[CLOSING], scope[OVER] = lambda: self.closing, lambda: self._over
        status, begun = 500, time.monotonic()
        name = scope["path"] if scope["path"] in ENDPOINTS else "other"
        call = asyncio.current_task()
        assert call is not None

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._unanswered.discard(call)
            await send(message)

        async def refuse(error: CallError) -> None:
            answer = self._refusal(scope, error)
            answer.headers.update(error.headers | {"connection": "close"})
            await answer(scope, receive, sending)

        self.open_calls += 1
        self._unanswered.add(call)
        try:
            answer = self._check(scope)
            if answer is None:
                await self._app(scope, await self._read(scope, receive), sending)
            else:  # its body is not read
                answer.headers["connection"] = "close"
                await answer(scope, receive, sending)
        except CallError as error:
            await refuse(error)
        except asyncio.CancelledError:
            if not self._over:
                raise
            if call in self._unanswered:
                await refuse(not_serving("stopping"))
        finally:
            self.open_calls -= 1
            self._unanswered.discard(call)
            self._meter.requests.labels(name, str(status)).inc()
            self._meter.seconds.labels(name).observe(time.monotonic() - begun)

    def _check(self, scope: Scope) -> Response | None:
        """Refuse a call; or give what answers in place of the application."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self._local and not _is_local(headers.get(b"host", b"").decode("latin-1")):
            raise CallError(403, "without a token the server answers only calls to localhost", code="host")
        if self._local and _from_elsewhere(headers):
            raise CallError(403, "without a token the server answers no page of another site", code="origin")
        if scope["path"] in OPEN:
            return None
        given = headers.get(b"authorization", b"")
        known = self._bearer is None or hmac.compare_digest(given, self._bearer)
        answer = None if known else self._entrance(scope)
        if self.closing:
            raise not_serving("stopping")
        return answer

    async def _read(self, scope: Scope, receive: Receive) -> Receive:
        """The whole body, and what gives it again.

        Raises:
            CallError: It is too large, or does not arrive.
        """
        most = self._bodies.get(scope["path"], self._config.max_body)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > most:
            raise _too_large(most)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._config.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        break
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise _too_large(most)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise CallError(408, f"the body did not arrive within {self._config.seconds:g} seconds") from None
        given: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def again() -> Message:
            return given.pop() if given else await receive()

        return again


def refuse(scope: Scope) -> Response | None:
    """Let nobody in without the token.

    Raises:
        CallError: Always.
    """
    raise CallError(401, "the token is missing or wrong: Authorization: Bearer TOKEN", code="invalid_api_key")


def as_json(scope: Scope, error: CallError) -> Response:
    """A refusal in the form of OpenAI's errors."""
    return JSONResponse(error.body, error.status)


def _too_large(most: int) -> CallError:
    return CallError(413, f"the body has more than {most} bytes", code="body_too_large")


def _from_elsewhere(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser asks for a page of another site: it says so, whatever the page wants."""
    origin = headers.get(b"origin")
    if origin is not None and not _is_local(origin.decode("latin-1").partition("://")[2]):
        return True
    return headers.get(b"sec-fetch-site") == b"cross-site"


def _is_local(host: str) -> bool:
    """Whether the header Host names this machine by a loopback name."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return is_loopback(name.strip("[]"))


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone."""
    if host.lower() in ("localhost", "localhost."):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
