"""The box to ask the bank: what answers, which task that is, and how sure router and task are."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from markupsafe import Markup

from lorabank.components.tables import bar
from lorabank.core.config import SamplingConfig
from lorabank.models.answering.replies import GenerationRequest
from lorabank.page.rendering import page
from lorabank.page.security import SentForm
from lorabank.serving.errors import CallError
from lorabank.serving.forms import ranked
from lorabank.serving.served import Served
from lorabank.workflows.asking.questions import Answered, Question

router = APIRouter()

_MOST_TOKENS = 256
"""New tokens of an answer in free text; the server's own limit may be lower."""
_MOST_LABELS = 20
"""Labels and tasks that are listed with their probabilities, the likeliest."""


@dataclass(frozen=True)
class Asked:
    """One answer with what is shown of it; ``shares``, ``tasks`` and ``weights`` are names, numbers and bars."""

    model: str
    answer: Answered
    shares: list[tuple[str, float, Markup]]
    tasks: list[tuple[str, float, Markup]]
    weights: list[tuple[str, float]]


@router.get("/try")
def ask(request: Request, who: str = "") -> Response:
    """The form."""
    return _page(request, who=who)


@router.post("/try")
async def answer(request: Request, form: SentForm) -> Response:
    """The form with the answers of one or two tasks or compositions to a text."""
    text, who, also = (form.get(name, "") for name in ("text", "who", "also"))
    shown = partial(_page, request, text=text, who=who, also=also)
    if not text.strip():
        return await run_in_threadpool(shown, status=422, problem="Type a text to ask.")
    served: Served = request.app.state.served
    asked = []
    try:
        for model in dict.fromkeys(name for name in (who, also) if name):
            question = Question(model, ({"role": "user", "content": text},), _generation(served))
            with await served.call([question], param="who") as call:
                asked.append(_asked(model, (await call.answers(request))[0]))
    except CallError as error:
        problem = f"{error.message[:1].upper()}{error.message[1:]}."
        return await run_in_threadpool(shown, status=error.status, problem=problem)
    return await run_in_threadpool(shown, asked=asked)


def _generation(served: Served) -> GenerationRequest:
    most = min(_MOST_TOKENS, served.engine.max_new_tokens)
    return GenerationRequest(SamplingConfig(max_new_tokens=most, seed=secrets.randbits(32)))


def _asked(model: str, answer: Answered) -> Asked:
    return Asked(
        model,
        answer,
        shares=[(name, share, bar(share)) for name, share in ranked(answer.shares)[:_MOST_LABELS]],
        tasks=[(name, share, bar(share)) for name, share in ranked(answer.who.posterior)[:_MOST_LABELS]],
        weights=[(name, weight) for name, weight in answer.who.adapters.items() if weight],
    )


def _page(
    request: Request,
    *,
    status: int = 200,
    asked: list[Asked] | None = None,
    problem: str = "",
    text: str = "",
    who: str = "",
    also: str = "",
) -> Response:
    served: Served = request.app.state.served
    models: list[dict[str, Any]] = [one for one in served.catalogue.models() if one["servable"]]
    compositions = [one["id"] for one in models if one["kind"] == "composition"]
    return page(
        request,
        "try.j2",
        status=status,
        tasks=[one["id"] for one in models if one["kind"] == "task"],
        compositions=compositions,
        asked=asked,
        problem=problem,
        text=text,
        who=who or next(iter(compositions), ""),
        also=also,
    )
