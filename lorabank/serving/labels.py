"""``/v1/classify`` and ``/v1/route``: labels of texts, and what would answer them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from lorabank.serving import forms
from lorabank.serving.bodies import ClassifyBody
from lorabank.serving.errors import CallError
from lorabank.serving.served import served_by
from lorabank.workflows.asking.questions import Who

router = APIRouter()


@router.post("/v1/classify")
async def classify(body: ClassifyBody, request: Request) -> JSONResponse:
    """Label texts: the label of each, its probability and what answered; with ``all_labels`` every label's."""
    served = served_by(request)
    with await served.call(body.questions(), param="input", check=_has_labels) as call:
        answers = await call.answers(request)
    data = [
        forms.label_of(i, one, every=bool(body.all_labels)) | {"lorabank": forms.told(one.who)}
        for i, one in enumerate(answers)
    ]
    document = {"object": "list", "model": body.model, "data": data}
    return JSONResponse(document, headers=forms.routing_headers(answers[0].who, answers[0].probability))


@router.post("/v1/route")
async def route(body: ClassifyBody, request: Request) -> JSONResponse:
    """Find the task of each text; no answer is computed."""
    served = served_by(request)
    with await served.call(body.questions(), param="input", routing=True) as call:
        found = await call.routes(request)
    data: list[dict[str, Any]] = [{"index": i} | forms.told(who) for i, who in enumerate(found)]
    document = {"object": "list", "model": body.model, "data": data}
    return JSONResponse(document, headers=forms.routing_headers(found[0], None))


def _has_labels(who: Who) -> None:
    """Refuse a text that no label answers.

    Raises:
        CallError: The task answers in free text.
    """
    if not who.labels:
        raise CallError(422, f"task {who.task!r} answers in free text: POST /v1/completions", param="model")
