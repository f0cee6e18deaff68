"""The application: its endpoints behind its limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from lorabank.serving import about, generation, labels
from lorabank.serving.limits import App, Entrance, Gate, Refusal, as_json
from lorabank.serving.served import Served, answer_errors


@dataclass(frozen=True)
class Part:
    """A part of the application for browsers.

    Attributes:
        prefix: Every path of it begins with this one.
        app: What answers.
        entrance: What callers without the token get.
        bodies: Path to the maximum size of a body, in bytes, where it is not the server's.
        refusal: Answers calls that are refused at the gate.
    """

    prefix: str
    app: App
    entrance: Entrance
    bodies: Mapping[str, int] = field(default_factory=dict)
    refusal: Refusal = as_json


def make_app(
    served: Served,
    *,
    token: str | None = None,
    local: bool = False,
    page: Callable[[Served, str | None], Part] | None = None,
) -> Gate:
    """The application of a server.

    Args:
        served: The bank that answers.
        token: What callers must send.
        local: Whether only calls by a loopback name are taken.
        page: Makes the page for browsers of the bank and the token; None for no page.
    """
    app = FastAPI(title="lorabank", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.served = served
    for part in (about, labels, generation):
        app.include_router(part.router)
    answer_errors(app, served.engine.report)
    if page is None:
        return Gate(app, served.config, token, local=local, meter=served.meter)
    made = page(served, token)
    app.add_api_route("/", lambda: RedirectResponse(f"{made.prefix}/"), response_class=RedirectResponse)
    app.mount(made.prefix, made.app)
    return Gate(
        app,
        served.config,
        token,
        local=local,
        meter=served.meter,
        entrance=made.entrance,
        bodies=made.bodies,
        refusal=made.refusal,
    )
