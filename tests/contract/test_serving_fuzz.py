"""A thousand broken calls: none ends in a status above 499, and the server answers as before afterwards."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorabank import api
from lorabank.core.config import ComposeConfig
from lorabank.serving.limits import ENDPOINTS
from tests.contract.conftest import Lab
from tests.contract.serving import HOST, Here

SEEDS = 1000
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
    path = chance.choice([*ENDPOINTS, f"/v1/models/{models[0]}", "/v1/models/%00", "/", "/v1/../x"])
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


def ask_all(here: Here, models: Sequence[str], seeds: int) -> None:
    """Ask broken calls: no status is above 499, and each error has OpenAI's form."""
    codes: Counter[int] = Counter()

    async def ask() -> None:
        transport = httpx.ASGITransport(here.gate)
        async with httpx.AsyncClient(transport=transport, base_url=HOST, timeout=60) as client:
            for seed in range(seeds):
                method, path, more = broken_call(seed, models)
                headers = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in more["headers"].items()]
                answer = await client.request(method, path, content=more["content"], headers=headers)
                codes[answer.status_code] += 1
                assert answer.status_code < 500, (seed, method, path, more, answer.text)
                if answer.status_code >= 400 and method != "HEAD":
                    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, (seed, answer.text)
                if answer.headers.get("content-type", "").startswith("text/event-stream"):
                    assert answer.text.endswith("data: [DONE]\n\n"), (seed, answer.text)

    asyncio.run(ask())
    assert codes[200] > seeds / 50
    assert {400, 404, 405, 422} <= set(codes)


@pytest.mark.timeout(900)
def test_no_input_makes_the_server_fail(lab: Lab, tmp_path: Path) -> None:
    bank = Path(shutil.copytree(lab.bank("olora", 2), tmp_path / "bank"))
    api.compose(bank, ComposeConfig(mode="routed", router="kmeans", device="cpu"))
    api.compose(bank, ComposeConfig(mode="merged", name="sum", scores=False, device="cpu"))
    with Here(bank) as here:
        right = {"model": "one", "input": "a b"}
        before = here.post("/v1/classify", right).json()
        ask_all(here, ("one", "two", "routed", "sum"), SEEDS)
        assert here.post("/v1/classify", right).json() == before
