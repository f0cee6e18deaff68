"""F21: broken calls to a server. No status is above 499, answers stay as they were, and memory stays as it is."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabank.serving.limits import ENDPOINTS
from tests.faults.outcome import Outcome
from tests.faults.processes import scratch

if TYPE_CHECKING:
    import httpx

    from tests.contract.serving import Here

WARM = 5000
"""Calls after which memory must not grow: caches are full, and the allocator has what it keeps."""
GROWTH = 0.03
"""Of the memory at that time, in each 100,000 calls that follow: noise of the allocator."""
ASKED = ["/v1/chat/completions", "/v1/completions", "/v1/classify", "/v1/route"]
"""Endpoints that read a body."""
TEXTS = ["", "a b c", "\x00", "\ud800", "\u202e", "é" * 200, "{text}", "</s>", "a" * 3000, "1e999", "../../etc"]
NUMBERS = [0, 1, -1, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")]
FIELDS = [
    "model", "messages", "prompt", "input", "stream", "stop", "seed", "temperature", "top_p", "max_tokens", "n",
    "logprobs", "top_logprobs", "stream_options", "tools", "raw", "all_labels", "repetition_penalty", "lorabank",
]  # fmt: skip


def anything(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(6 if depth < 4 else 4)
    if kind == 0:
        return chance.choice(TEXTS)
    if kind == 1:
        return chance.choice(NUMBERS)
    if kind in (2, 3):
        return chance.choice([True, False, None, "one", "two", "routed", "chat", "user", "text"])
    size = chance.randrange(4)
    if kind == 4:
        return [anything(chance, depth + 1) for _ in range(size)]
    keys = ["role", "content", "type", "text", "include_usage", *FIELDS]
    return {chance.choice(keys): anything(chance, depth + 1) for _ in range(size)}


def nearly_right(chance: random.Random, models: Sequence[str]) -> dict[str, Any]:
    """A call that would do, with some fields broken."""
    body: dict[str, Any] = {
        "model": chance.choice([*models, "nowhere"]),
        "messages": [{"role": "user", "content": chance.choice(TEXTS)}],
        "prompt": chance.choice(TEXTS),
        "input": [chance.choice(TEXTS) for _ in range(chance.randrange(3))],
        "max_tokens": 2,
    }
    for _ in range(chance.randrange(4)):
        body[chance.choice(FIELDS)] = anything(chance)
    if chance.random() < 0.1:
        body.pop(chance.choice(list(body)))
    return body


def written(body: Any) -> bytes:
    """JSON as careless programs write it: NaN, numbers without bounds, lone surrogates as escapes."""
    return json.dumps(body).encode("ascii")


def broken_call(seed: int, models: Sequence[str]) -> tuple[str, str, dict[str, Any]]:
    chance = random.Random(seed)
    path = chance.choice([*ASKED * 4, *ENDPOINTS, f"/v1/models/{models[0]}", "/v1/models/%00", "/", "/v1/../x"])
    method = chance.choice(["POST"] * 8 + ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
    content = written(nearly_right(chance, models) if chance.random() < 0.8 else anything(chance))
    kind = chance.randrange(10)
    if kind == 0:
        content = content[: chance.randrange(len(content) + 1)]
    elif kind == 1:
        content = b"[" * 20_000
    elif kind == 2:
        content = bytes(chance.randrange(256) for _ in range(50))
    elif kind == 3:
        content = content.replace(b'"', b"\xff", 1)
    headers = {"content-type": chance.choice(["application/json"] * 6 + ["text/plain", "multipart/form-data", "\xff"])}
    for name in ("authorization", "accept", "content-encoding", "x-forwarded-for", "transfer-encoding"):
        if chance.random() < 0.1:
            headers[name] = "".join(chr(chance.randrange(33, 255)) for _ in range(chance.randrange(40)))
    return method, path, {"content": content, "headers": headers}


@dataclass
class Heard:
    """What broken calls were answered.

    Attributes:
        codes: How often each status came.
        wrong: Calls with another answer than a server may give, in words.
        memory: Resident bytes after every thousand calls.
    """

    codes: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def ask_broken(here: Here, models: Sequence[str], seeds: range) -> Heard:
    """Ask one broken call for each seed: no status may be above 499, and each error has OpenAI's form."""
    import httpx

    heard = Heard()

    async def ask() -> None:
        transport = httpx.ASGITransport(here.gate)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            for seed in seeds:
                method, path, more = broken_call(seed, models)
                headers = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in more["headers"].items()]
                answer = await client.request(method, path, content=more["content"], headers=headers)
                heard.codes[answer.status_code] += 1
                if reason := _wrong(method, answer):
                    heard.wrong.append(f"seed {seed}: {method} {path}: {reason}: {answer.text[:200]!r}")
                if (seed + 1) % 1000 == 0:
                    heard.memory.append(_resident())

    asyncio.run(ask())
    return heard


def _wrong(method: str, answer: httpx.Response) -> str | None:
    """Why a server may not answer so; None if it may."""
    if answer.status_code >= 500:
        return f"status {answer.status_code}"
    if answer.status_code >= 400 and method != "HEAD":
        fields = {"message", "type", "param", "code"}
        if set(answer.json().get("error", ())) != fields:
            return "the error does not have OpenAI's form"
    stream = answer.headers.get("content-type", "").startswith("text/event-stream")
    return "the stream has no end" if stream and not answer.text.endswith("data: [DONE]\n\n") else None


def run(count: int | None, seed: int) -> Outcome:
    """F21: ``count`` broken calls to an encoder's bank, and a right one before, between and after."""
    from tests.contract.serving import Here

    outcome, count = Outcome(), count or 100_000
    right = {"model": "routed", "input": "a b"}
    with scratch() as folder, Here(_bank(folder)) as here:
        before, first = here.post("/v1/classify", right).json(), seed * 1_000_000
        heard = ask_broken(here, ("one", "two", "routed", "sum"), range(first, first + count))
        after = here.post("/v1/classify", right).json()
    outcome.tries = count
    for wrong in heard.wrong:
        outcome.find("uncaught", wrong)
    if after != before:
        outcome.find("damaged", f"{right} was answered {before} before and {after} after")
    for problem in _growing(heard.memory):
        outcome.find("uncaught", problem)
    shown = ", ".join(f"{code}: {often:,}" for code, often in sorted(heard.codes.items()))
    outcome.notes.append(f"answers by status: {shown}")
    if heard.memory:
        tenths = heard.memory[:: max(1, len(heard.memory) // 10)]
        outcome.notes.append(f"MB in memory after each tenth of them: {[size // 2**20 for size in tenths]}")
    return outcome


def _growing(memory: Sequence[int]) -> list[str]:
    """Whether more memory was in use at the end than when everything was warm; too few calls say nothing."""
    if len(memory) <= WARM // 1000:
        return []
    warm, end = memory[WARM // 1000], memory[-1]
    allowed = warm * GROWTH * max(1.0, len(memory) / 100)
    return [f"memory grew from {warm:,} to {end:,} bytes"] if end - warm > allowed else []


def _resident() -> int:
    """Bytes of this process in memory."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _bank(folder: Path) -> Path:
    """Two tasks on a tiny encoder, a router over them and their sum."""
    import transformers

    from lorabank import api
    from lorabank.core.config import ComposeConfig
    from tests.conftest import _letter_tokenizer, _tiny_config
    from tests.contract.conftest import Lab

    base = folder / "base"
    transformers.AutoModel.from_config(_tiny_config("bert")).save_pretrained(base)
    _letter_tokenizer("bert").save_pretrained(base)
    bank = Lab("bert", base, folder).bank("olora", 2)
    api.compose(bank, ComposeConfig(mode="routed", router="kmeans", device="cpu"))
    api.compose(bank, ComposeConfig(mode="merged", name="sum", scores=False, device="cpu"))
    return bank
