"""What callers get: OpenAI's forms, with what answered in the headers and in the field ``lorabank``."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lorabank.workflows.asking.questions import Answered, Who

_SHOWN = 32
"""Adapters in a header; the body has them all."""

_FINISH = {"stop": "stop", "length": "length", "ended": "length"}


def routing_headers(who: Who, probability: float | None) -> dict[str, str]:
    """What answered, for a caller who reads no body."""
    adapters = [f"{task}={weight:.4g}" for task, weight in list(who.adapters.items())[:_SHOWN]]
    found = {
        "x-lorabank-task": who.task,
        "x-lorabank-task-id": who.task_id,
        "x-lorabank-adapters": ",".join([*adapters, *(["..."] if len(who.adapters) > _SHOWN else [])]),
        "x-lorabank-bank-revision": str(who.revision),
    }
    if who.margin is not None:
        found["x-lorabank-margin"] = f"{who.margin:.6g}"
    if probability is not None:
        found["x-lorabank-probability"] = f"{probability:.6g}"
    return found


def told(who: Who) -> dict[str, Any]:
    """What answered, as the field ``lorabank`` has it."""
    return {
        "task": who.task,
        "task_id": who.task_id,
        "composition": who.composition,
        "margin": who.margin,
        "posterior": dict(who.posterior),
        "adapters": dict(who.adapters),
        "bank_revision": who.revision,
    }


def head(kind: str, model: str) -> dict[str, Any]:
    """What every answer of an OpenAI endpoint begins with."""
    prefix = "chatcmpl" if kind.startswith("chat") else "cmpl"
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}


def finish(one: Answered) -> str:
    """Why an answer ended."""
    return "stop" if one.written is None else _FINISH[one.written.finish]


def usage(answers: Sequence[Answered]) -> dict[str, int]:
    """Tokens of free text; an answer with a label generates none, and its prompt is not counted."""
    written = [one.written for one in answers if one.written is not None]
    prompt, new = sum(one.prompt_tokens for one in written), sum(one.tokens for one in written)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def chat_choice(one: Answered, top: int | None) -> dict[str, Any]:
    """The one choice of a conversation; ``top`` labels with their log-probabilities where they are asked for."""
    return {
        "index": 0,
        "message": {"role": "assistant", "content": one.text, "refusal": None},
        "finish_reason": finish(one),
        "logprobs": None if top is None else chat_logprobs(one, top),
    }


def chat_logprobs(one: Answered, top: int) -> dict[str, Any]:
    """The label as one token, beside the likeliest labels."""
    likeliest = [_token(label, share) for label, share in ranked(one.shares)[:top]]
    return {"content": [_token(one.text, one.shares[one.text]) | {"top_logprobs": likeliest}], "refusal": None}


def completion_choice(index: int, one: Answered, top: int | None) -> dict[str, Any]:
    """One of the choices of a completion."""
    return {
        "index": index,
        "text": one.text,
        "finish_reason": finish(one),
        "logprobs": None if top is None else completion_logprobs(one, top),
    }


def completion_logprobs(one: Answered, top: int) -> dict[str, Any]:
    """The label as one token, beside the likeliest labels."""
    return {
        "tokens": [one.text],
        "token_logprobs": [log(one.shares[one.text])],
        "top_logprobs": [{label: log(share) for label, share in ranked(one.shares)[:top]}],
        "text_offset": [0],
    }


def label_of(index: int, one: Answered, *, every: bool) -> dict[str, Any]:
    """The label of one of the texts of a call, with the probabilities of all labels where they are asked for."""
    found = {"index": index, "label": one.text, "probability": one.probability}
    return found | ({"labels": dict(ranked(one.shares))} if every else {})


def ranked(shares: Mapping[str, float]) -> list[tuple[str, float]]:
    """Labels with their probabilities, the likeliest first."""
    return sorted(shares.items(), key=lambda item: -item[1])


def log(share: float) -> float:
    """The logarithm of a probability; of 0 the smallest number that JSON readers take."""
    return math.log(share) if share > 0 else -9999.0


def event(document: Mapping[str, Any] | str) -> str:
    """A server-sent event."""
    return f"data: {document if isinstance(document, str) else json.dumps(document, allow_nan=False)}\n\n"


def _token(label: str, share: float) -> dict[str, Any]:
    return {"token": label, "logprob": log(share), "bytes": list(label.encode("utf-8", "surrogatepass"))}
