"""``/v1/chat/completions`` and ``/v1/completions``: free text as it comes, or the label of a task that has labels."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from lorabank.serving import forms
from lorabank.serving.bodies import ChatBody, CompletionBody
from lorabank.serving.calls import Call
from lorabank.serving.errors import CallError, call_error
from lorabank.serving.jobs import Check
from lorabank.serving.served import served_by
from lorabank.workflows.asking.questions import Answered, Who

router = APIRouter()

_NO_LABELS = "logprobs are those of labels, and task {task!r} answers in free text"


@router.post("/v1/chat/completions")
async def chat(body: ChatBody, request: Request) -> Response:
    """Answer a conversation."""
    served = served_by(request)
    asked = body.questions(served.engine.max_new_tokens)
    top = (body.top_logprobs or 0) if body.logprobs else None
    call = await served.call(asked, param="messages", pieces=bool(body.stream), check=_logprobs_check(top))
    if body.stream:
        return await _streamed(call, body, request, ChatChunks(body.model, top))
    with call:
        (one,) = await call.answers(request)
    document = forms.head("chat.completion", body.model) | {
        "choices": [forms.chat_choice(one, top)],
        "usage": forms.usage([one]),
        "lorabank": forms.told(one.who) | {"probability": one.probability},
    }
    return JSONResponse(document, headers=forms.routing_headers(one.who, one.probability))


@router.post("/v1/completions")
async def complete(body: CompletionBody, request: Request) -> Response:
    """Answer texts, each in the prompt template of the task that answers."""
    served = served_by(request)
    asked = body.questions(served.engine.max_new_tokens)
    if body.stream and len(asked) > 1:
        raise CallError(422, "a stream answers one prompt", param="prompt")
    call = await served.call(asked, param="prompt", pieces=bool(body.stream), check=_logprobs_check(body.logprobs))
    if body.stream:
        return await _streamed(call, body, request, CompletionChunks(body.model, body.logprobs))
    with call:
        answers = await call.answers(request)
    first = answers[0]
    choices = [
        forms.completion_choice(i, one, body.logprobs)
        | {"lorabank": forms.told(one.who) | {"probability": one.probability}}
        for i, one in enumerate(answers)
    ]
    document = forms.head("text_completion", body.model) | {
        "choices": choices,
        "usage": forms.usage(answers),
        "lorabank": choices[0]["lorabank"],
    }
    return JSONResponse(document, headers=forms.routing_headers(first.who, first.probability))


class ChatChunks:
    """The chunks of a conversation's answer.

    Args:
        model: What was asked.
        top: Labels with their log-probabilities; None where they are not asked for.
    """

    def __init__(self, model: str, top: int | None) -> None:
        self._head = forms.head("chat.completion.chunk", model)
        self.top = top

    def begin(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """What answers, before its first word."""
        return self._chunk({"role": "assistant", "content": ""}) | {"lorabank": told}

    def piece(self, text: str) -> dict[str, Any]:
        """A piece of the text."""
        return self._chunk({"content": text})

    def end(self, one: Answered) -> dict[str, Any]:
        """Why the answer ended."""
        logprobs = None if self.top is None else forms.chat_logprobs(one, self.top)
        return self._chunk({}, finish=forms.finish(one), logprobs=logprobs)

    def usage(self, one: Answered) -> dict[str, Any]:
        """Tokens of the answer."""
        return self._head | {"choices": [], "usage": forms.usage([one])}

    def _chunk(self, delta: Mapping[str, Any], finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return self._head | {"choices": [choice]}


class CompletionChunks:
    """The chunks of a completion; see `ChatChunks`."""

    def __init__(self, model: str, top: int | None) -> None:
        self._head = forms.head("text_completion", model)
        self.top = top

    def begin(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """What answers, with no text yet."""
        return self._chunk("") | {"lorabank": told}

    def piece(self, text: str) -> dict[str, Any]:
        """A piece of the text."""
        return self._chunk(text)

    def end(self, one: Answered) -> dict[str, Any]:
        """Why the answer ended."""
        logprobs = None if self.top is None else forms.completion_logprobs(one, self.top)
        return self._chunk("", finish=forms.finish(one), logprobs=logprobs)

    def usage(self, one: Answered) -> dict[str, Any]:
        """Tokens of the answer."""
        return self._head | {"choices": [], "usage": forms.usage([one])}

    def _chunk(self, text: str, finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        return self._head | {"choices": [{"index": 0, "text": text, "finish_reason": finish, "logprobs": logprobs}]}


Chunks = ChatChunks | CompletionChunks


async def _streamed(
    call: Call, body: ChatBody | CompletionBody, request: Request, chunks: Chunks
) -> StreamingResponse:
    """The answer as server-sent events, once it is known what answers."""
    call.__enter__()
    try:
        who = await call.begun(request)
    except BaseException:
        call.__exit__()
        raise
    return StreamingResponse(
        _events(call, chunks, forms.told(who), usage=body.usage_in_stream),
        media_type="text/event-stream",
        headers=forms.routing_headers(who, None) | {"cache-control": "no-store"},
    )


async def _events(call: Call, chunks: Chunks, told: Mapping[str, Any], *, usage: bool) -> AsyncIterator[str]:
    try:
        yield forms.event(chunks.begin(told))
        heard = False
        async for piece in call.pieces():
            if isinstance(piece, str):
                heard = True
                yield forms.event(chunks.piece(piece))
                continue
            if not heard and piece.text:
                yield forms.event(chunks.piece(piece.text))
            yield forms.event(chunks.end(piece))
            if usage:
                yield forms.event(chunks.usage(piece))
    except Exception as error:  # the status was sent before: the stream itself says what went wrong
        yield forms.event(call_error(error).body)
    else:
        yield forms.event("[DONE]")
    finally:
        call.__exit__()


def _logprobs_check(top: int | None) -> Check | None:
    """What refuses, with a `CallError`, logprobs of free text; None if none are asked for."""
    return None if top is None else _has_logprobs


def _has_logprobs(who: Who) -> None:
    if not who.labels:
        raise CallError(422, _NO_LABELS.format(task=who.task), param="logprobs")
