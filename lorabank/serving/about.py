"""What is served and how it fares: ``/v1/models``, ``/v1/bank``, ``/health``, ``/ready`` and ``/metrics``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from lorabank.serving.errors import unknown_model
from lorabank.serving.metrics import CONTENT_TYPE
from lorabank.serving.served import served_by

router = APIRouter()


@router.get("/v1/models")
def models(request: Request) -> dict[str, Any]:
    """Tasks and compositions."""
    return {"object": "list", "data": served_by(request).models()}


@router.get("/v1/models/{name}")
def model(name: str, request: Request) -> dict[str, Any]:
    """One of them."""
    known = {one["id"]: one for one in served_by(request).models()}
    if name not in known:
        raise unknown_model(name, known)
    return known[name]


@router.get("/v1/bank")
def bank(request: Request) -> dict[str, Any]:
    """The bank's base, tasks and compositions."""
    return served_by(request).catalogue.bank()


@router.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """The process answers; whether the backend does, if there is one."""
    return {"status": "ok"} | await _backend(request)


@router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """Whether the model is loaded, and the backend takes calls, if there is one."""
    engine, backend = served_by(request).engine, await _backend(request)
    able = engine.ready and all(one["reachable"] for one in backend.values())
    return JSONResponse({"ready": able, "bank_revision": engine.revision} | backend, 200 if able else 503)


async def _backend(request: Request) -> dict[str, dict[str, Any]]:
    backend = served_by(request).engine.backend
    if backend is None:
        return {}
    return {"backend": {"name": backend.name, "reachable": await run_in_threadpool(backend.reachable)}}


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    return Response(served_by(request).meter.page(), media_type=CONTENT_TYPE)
