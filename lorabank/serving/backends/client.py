"""What is asked of vLLM over HTTP: tokens behind a prompt, how likely tokens are, and to load adapters.

Prompts are token ids and answers come as token ids, so that templates, truncated prompts, stop texts and the text of
an answer are made here, as for the bank's own model. The fields are those of vLLM 0.33 (its modules
``entrypoints.openai.completion.protocol`` and ``entrypoints.serve.lora.protocol``).
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from lorabank.core.config import SamplingConfig
from lorabank.core.errors import ConfigError, IncompatibleError, LorabankError
from lorabank.core.escaping import safe
from lorabank.serving.backends.address import Address
from lorabank.serving.backends.failures import (
    BackendFailure,
    UnknownAdapterError,
    busy,
    garbled,
    not_taken,
    unreachable,
)

_CONNECT = 5.0
"""Seconds within which a connection must be made; how long an answer may take, its caller decides."""
_ALIVE = 2.0
"""Seconds within which `VllmClient.healthy` must be answered."""
_IDLE = 2.0
"""Seconds that an idle connection is used again: vLLM closes it after 5."""
_SHOWN, _MOST = 300, 1 << 16
"""Characters of a message of vLLM that are passed on; bytes that are read of an answer without tokens."""
_LINE, _PER_TOKEN = 1 << 20, 1 << 10
"""Bytes that a line of a stream has at most, and an answer for each token whose log-likelihood it says."""
_TOKENS = 1 << 31
"""Every token is below this number: tokenizers take 32 bits."""
_UNHEARD = 16
"""Tokens of a chunk where nobody hears them as they come."""
_TOGETHER = 16
"""Prompts of a call that asks how likely tokens are."""

Hear = Callable[[Sequence[int]], bool]
"""Called with the next tokens of an answer; gives whether it ends there."""


@dataclass(frozen=True)
class Wanted:
    """How an answer is generated.

    Attributes:
        sampling: How its tokens are chosen, and where it ends.
        ends: Tokens that end it.
        heard: Whether somebody hears its text as it grows.
    """

    sampling: SamplingConfig
    ends: Sequence[int]
    heard: bool


class VllmClient:
    """One vLLM server.

    Args:
        address: Where it listens.
        key: What it wants as a token, which a header can hold; None for nothing.

    Raises:
        ConfigError: The address, or a proxy or certificates that environment variables name, cannot be used.
    """

    def __init__(self, address: Address, key: str | None) -> None:
        uds = address.uds
        try:
            self._client = httpx.AsyncClient(
                base_url=address.url,
                headers={} if key is None else {"authorization": f"Bearer {key}"},
                timeout=httpx.Timeout(None, connect=_CONNECT),
                limits=_LIMITS,
                transport=None if uds is None else httpx.AsyncHTTPTransport(uds=uds, limits=_LIMITS),
            )
        except (httpx.InvalidURL, ImportError, OSError, ValueError) as error:
            raise ConfigError(
                f"--backend cannot be asked: {str(error).partition('. ')[0]}",
                hint="correct the URL, or the environment variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE "
                "and SSL_CERT_DIR",
                unchanged="nothing was started",
            ) from error

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def healthy(self) -> bool:
        """Whether it takes calls."""
        try:
            async with asyncio.timeout(_ALIVE), self._client.stream("GET", "/health") as response:
                await _read(response, _MOST)
                return response.status_code == 200
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
            return False

    async def complete(self, adapter: str, prompt: Sequence[int], wanted: Wanted, hear: Hear) -> str | None:
        """Generate an answer.

        Args:
            adapter: Its name at vLLM.
            prompt: Token ids.
            wanted: How it is generated.
            hear: Called with its tokens.

        Returns:
            Why vLLM ended it, ``"stop"`` or ``"length"``; None where ``hear`` did.

        Raises:
            UnknownAdapterError: vLLM does not know the adapter; nothing was heard.
            BackendFailure: There is no answer, or not all of it.
        """
        body = _completion(adapter, prompt, wanted)
        async with self._reached(), self._client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                raise _refusal(response, await _read(response, _MOST))
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise garbled(_strange("an answer that is not a stream of events"))
            finish, ended = None, False
            async for event in _events(response):
                ids, finish = _chunk(event, finish)
                ended = ended or (bool(ids) and hear(ids))
                if ended and finish is None:
                    return None
            if finish is None:
                raise unreachable(_strange("a stream that ends before its answer does"))
            return None if ended else finish

    async def log_likelihoods(
        self, adapter: str, prompt: Sequence[int], answers: Sequence[Sequence[int]]
    ) -> list[float]:
        """Sums of log p of the tokens of each answer behind a prompt; arguments and errors as of `complete`."""
        found: list[float] = []
        for first in range(0, len(answers), _TOGETHER):
            some = answers[first : first + _TOGETHER]
            body = {
                "model": adapter,
                "prompt": [[*prompt, *answer] for answer in some],
                "max_tokens": 1,
                "temperature": 0,
                "prompt_logprobs": 1,
            }
            most = _MOST + _PER_TOKEN * sum(len(prompt) + len(answer) for answer in some)
            response, content = await self._posted("/v1/completions", body, most)
            if response.status_code != 200:
                raise _refusal(response, content)
            if len(content) > most:
                raise garbled(_strange(f"more than {most} bytes about some tokens"))
            by_index = {}
            for choice in _listed(_document(content), "choices"):
                if isinstance(choice, dict) and type(choice.get("index")) is int:
                    by_index[choice["index"]] = choice
            found += [_likelihood(by_index.get(i), len(prompt), answer) for i, answer in enumerate(some)]
        return found

    async def load(self, adapter: str, folder: Path) -> None:
        """Let vLLM load a PEFT folder that it can read.

        Raises:
            BackendFailure: It does not.
        """
        body = {"lora_name": adapter, "lora_path": str(folder), "load_inplace": True}
        response, content = await self._posted("/v1/load_lora_adapter", body, _MOST)
        status, said = response.status_code, _said(content)
        if status == 200 or (status == 400 and said is not None and "already been loaded" in said):
            return
        if status in (401, 403, 429, 502, 503):
            raise _refusal(response, content)
        if status in (404, 405) and said is None:
            raise not_taken(
                "the backend takes no adapters while it runs; the server's log says more",
                IncompatibleError(
                    "vLLM has no /v1/load_lora_adapter",
                    hint="start it with --enable-lora and with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
                ),
            )
        raise not_taken(
            "the backend refuses the adapter of this model; the server's log says why",
            IncompatibleError(
                f"vLLM does not load {folder}: {(said or f'status {status}')[:_SHOWN]}",
                hint="vLLM must read this folder, and its --max-lora-rank must be at least the adapter's rank",
            ),
        )

    async def unload(self, adapter: str) -> bool:
        """Let vLLM forget an adapter; whether it does not know it any longer."""
        try:
            response, content = await self._posted("/v1/unload_lora_adapter", {"lora_name": adapter}, _MOST)
        except BackendFailure:
            return False
        return response.status_code == 200 or (response.status_code == 404 and _said(content) is not None)

    async def _posted(self, path: str, body: Mapping[str, Any], most: int) -> tuple[httpx.Response, bytes]:
        """The answer to a call, and its content as `_read` has it; raises a `BackendFailure` if there is none."""
        async with self._reached(), self._client.stream("POST", path, json=body) as response:
            return response, await _read(response, most)

    @asynccontextmanager
    async def _reached(self) -> AsyncIterator[None]:
        """A block in which a connection that fails is a `BackendFailure`."""
        try:
            yield
        except httpx.RemoteProtocolError as error:
            ended = "disconnected" in str(error) or "peer closed" in str(error)
            raise (unreachable if ended else garbled)(_strange(f"no HTTP: {error}")) from error
        except (httpx.DecodingError, httpx.TooManyRedirects) as error:
            raise garbled(_strange(str(error))) from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise unreachable(
                IncompatibleError(
                    f"vLLM cannot be reached at {self._client.base_url}: {said}",
                    hint="start it, or give another --backend",
                )
            ) from error


_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=_IDLE)


def _completion(adapter: str, prompt: Sequence[int], wanted: Wanted) -> dict[str, Any]:
    """The body of a completion; every default that vLLM would take from the base's generation_config is given."""
    sampling = wanted.sampling
    return {
        "model": adapter,
        "prompt": list(prompt),
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": sampling.seed,
        "stop": list(sampling.stop),
        "stop_token_ids": list(wanted.ends),
        "stream": True,
        "return_token_ids": True,
    } | ({} if wanted.heard else {"stream_interval": _UNHEARD})


async def _read(response: httpx.Response, most: int) -> bytes:
    """The content of an answer; of one with more bytes than ``most`` a beginning that has more of them too."""
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        if len(content) > most:
            break
    return bytes(content)


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The documents of a stream of events, until its ``[DONE]`` or its end."""
    async for line in _lines(response):
        field, _, value = line.partition(b":")
        if field != b"data":
            if line and field not in (b"", b"event", b"id", b"retry"):
                raise garbled(_strange(f"a stream with the line {line[:80].decode(errors='replace')!r}"))
            continue
        if value.strip() == b"[DONE]":
            return
        yield _document(value)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a stream of events; what else httpx takes for the end of a line, such as U+2028, JSON may hold."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
        if len(rest) > _LINE:
            raise garbled(_strange(f"a stream with a line of more than {_LINE} bytes"))
    yield rest


def _chunk(event: Mapping[str, Any], finish: str | None) -> tuple[list[int], str | None]:
    """The tokens of an event, and why the answer has ended, if it has."""
    if "error" in event:
        raise garbled(_strange(f"an error in the middle of an answer: {str(_message(event))[:_SHOWN]}"))
    choices = _listed(event, "choices")
    if not choices:  # the tokens that were counted
        return [], finish
    choice = choices[0]
    if not isinstance(choice, dict):
        raise garbled(_strange("a choice that is not an object"))
    ids = choice.get("token_ids")
    if ids is None and choice.get("text"):
        raise garbled(_strange("text without its tokens: its version does not know return_token_ids"))
    ids = [] if ids is None else ids
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < _TOKENS for token in ids):
        raise garbled(_strange("tokens that are not numbers"))
    reason = choice.get("finish_reason")
    if reason not in (None, "stop", "length"):
        raise unreachable(_strange(f"an answer that it ended for the reason {str(reason)[:40]!r}"))
    return ids, reason or finish


def _likelihood(choice: Mapping[str, Any] | None, start: int, answer: Sequence[int]) -> float:
    """The sum of log p of the tokens that stand in a prompt from ``start`` on."""
    try:
        rows = (choice or {})["prompt_logprobs"][start:]
        values = [float(row[str(token)]["logprob"]) for row, token in zip(rows, answer, strict=True)]
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise garbled(_strange("prompt_logprobs without the prompt's tokens")) from error
    if not all(math.isfinite(value) and value <= 1e-3 for value in values):
        raise garbled(_strange("prompt_logprobs that are not logarithms of probabilities"))
    return sum(values)


def _refusal(response: httpx.Response, content: bytes) -> BackendFailure | UnknownAdapterError:
    """What a status other than 200 means."""
    status, said = response.status_code, _said(content)
    if status == 404 and said is not None:
        return UnknownAdapterError(said)
    if status in (400, 413, 422) and said is not None:
        return not_taken(f"the backend refuses the text: {said[:_SHOWN]}")
    if status in (429, 503):
        after = response.headers.get("retry-after", "")
        return busy(int(after) if after.isdecimal() and len(after) < 5 else None)
    if status in (401, 403):
        return garbled(_strange(f"status {status}", "set VLLM_API_KEY to the key that vLLM was started with"))
    return garbled(_strange(f"status {status}: {(said or 'nothing that vLLM says')[:_SHOWN]}"))


def _document(content: bytes | str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise garbled(_strange("what is not JSON")) from error
    if not isinstance(document, dict):
        raise garbled(_strange("JSON that is not an object"))
    return document


def _listed(document: Mapping[str, Any], name: str) -> list[Any]:
    found = document.get(name)
    if not isinstance(found, list):
        raise garbled(_strange(f"JSON without {name!r}"))
    return found


def _said(content: bytes) -> str | None:
    """What vLLM says of an error; None where the body is not vLLM's."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return _message(document) if isinstance(document, dict) else None


def _message(document: Mapping[str, Any]) -> str | None:
    """Of an error in its newer form, ``{"error": {"message"}}``, or its older one, ``{"message"}``, as `safe` text."""
    error = document.get("error", document)
    message = error.get("message") if isinstance(error, dict) else error
    return safe(message) if isinstance(message, str) else None


def _strange(what: str, hint: str | None = None) -> LorabankError:
    return IncompatibleError(f"vLLM sent {what}", hint=hint or "is it vLLM that listens there?")
