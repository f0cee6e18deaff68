"""The application: its endpoints behind its limits."""

from __future__ import annotations

from fastapi import FastAPI

from lorabank.serving import about, generation, labels
from lorabank.serving.limits import Gate
from lorabank.serving.served import Served, answer_errors


def make_app(served: Served, *, token: str | None = None, local: bool = False) -> Gate:
    """The application of a server.

    Args:
        served: The bank that answers.
        token: What callers must send.
        local: Whether only calls by a loopback name are taken.
    """
    app = FastAPI(title="lorabank", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.served = served
    for part in (about, labels, generation):
        app.include_router(part.router)
    answer_errors(app, served.engine.report)
    return Gate(app, served.config, token, local=local, meter=served.meter)
