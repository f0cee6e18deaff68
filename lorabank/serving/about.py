"""What is served and how it fares: ``/v1/models``, ``/v1/bank``, ``/health``, ``/ready`` and ``/metrics``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lorabank.serving.errors import unknown_model
from lorabank.serving.metrics import CONTENT_TYPE
from lorabank.serving.served import served_by

router = APIRouter()


@router.get("/v1/models")
def models(request: Request) -> dict[str, Any]:
    """Tasks and compositions."""
    return {"object": "list", "data": served_by(request).catalogue.models()}


@router.get("/v1/models/{name}")
def model(name: str, request: Request) -> dict[str, Any]:
    """One of them."""
    for one in served_by(request).catalogue.models():
        if one["id"] == name:
            return one
    raise unknown_model(name)


@router.get("/v1/bank")
def bank(request: Request) -> dict[str, Any]:
    """The bank's base, tasks and compositions."""
    return served_by(request).catalogue.bank()


@router.get("/health")
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """Whether the model is loaded."""
    engine = served_by(request).engine
    document = {"ready": engine.ready, "bank_revision": engine.revision}
    return JSONResponse(document, 200 if engine.ready else 503)


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    return Response(served_by(request).meter.page(), media_type=CONTENT_TYPE)
