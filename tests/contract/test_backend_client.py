"""What lorabank asks of vLLM, where a server on a socket answers byte for byte what a test says."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from lorabank.core.config import SamplingConfig
from lorabank.core.errors import ConfigError
from lorabank.serving.backends.address import Address, read_address
from lorabank.serving.backends.client import VllmClient, Wanted
from lorabank.serving.backends.failures import BackendFailure

T = TypeVar("T")
OK, STREAM = b"HTTP/1.1 200 OK\r\n", b"content-type: text/event-stream\r\n\r\n"
WANTED = Wanted(SamplingConfig(max_new_tokens=8), (2,), heard=True)
SECRET = "hunter2"


def answered(answer: bytes, ask: Callable[[VllmClient], Awaitable[T]], again: bytes = b"") -> T:
    """What a client makes of an answer; ``again`` is sent behind it until the client leaves."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            while again:
                writer.write(again)
                await writer.drain()
                await asyncio.sleep(0.01 if len(again) < 100 else 0)
        except OSError:
            pass
        finally:
            writer.close()

    async def run(path: str) -> T:
        server = await asyncio.start_unix_server(serve, path)
        client = VllmClient(Address("vllm", "http://localhost", path), None)
        try:
            async with asyncio.timeout(30):
                return await ask(client)
        finally:
            await client.close()
            server.close()

    with tempfile.TemporaryDirectory(prefix="c-") as folder:
        return asyncio.run(run(f"{folder}/s"))


def heard(answer: bytes, again: bytes = b"") -> list[int]:
    """The tokens of a stream."""
    found: list[int] = []

    async def ask(client: VllmClient) -> None:
        await client.complete("a", [1], WANTED, lambda ids: found.extend(ids) or False)  # type: ignore[func-returns-value]

    answered(OK + STREAM + answer, ask, again)
    return found


def event(text: str, ids: list[int], finish: str | None = None) -> bytes:
    """An event as vLLM writes it: characters beyond ASCII stand as they are."""
    choice = {"index": 0, "text": text, "token_ids": ids, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode()


def code_of(call: Callable[[], Any]) -> str | None:
    with pytest.raises(BackendFailure) as caught:
        call()
    return caught.value.code


@pytest.mark.parametrize("text", ["\u2028", "\u2029", "\x85", "a\u2028b"])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_a_line_ends_only_where_events_end(text: str, end: bytes) -> None:
    assert heard(event(text, [5]) + end + event("b", [7], "stop") + end) == [5, 7]


def test_a_line_without_end_is_given_up() -> None:
    assert code_of(lambda: heard(b"data: ", again=b"x" * 65536)) == "backend_garbled"


@pytest.mark.parametrize("token", [1 << 31, 10**30])
def test_a_number_that_no_tokenizer_takes_is_no_token(token: int) -> None:
    assert code_of(lambda: heard(event("a", [token], "length") + b"\n\n")) == "backend_garbled"


def likelihoods(content: bytes, again: bytes = b"") -> list[float]:
    head = OK + b"content-type: application/json\r\n\r\n"
    return answered(head + content, lambda client: client.log_likelihoods("a", [1], [[5]]), again)


def test_an_answer_without_end_is_given_up() -> None:
    assert code_of(lambda: likelihoods(b'{"a": "', again=b"x" * 65536)) == "backend_garbled"


@pytest.mark.parametrize(
    "choice",
    [
        {"index": [0], "prompt_logprobs": [None, {"5": {"logprob": -1.0}}]},
        {"index": 0, "prompt_logprobs": [None, {"5": {"logprob": -(10**400)}}]},
        {"index": True, "prompt_logprobs": [None, {"5": {"logprob": -1.0}}]},
    ],
)
def test_choices_that_are_none(choice: dict[str, Any]) -> None:
    assert code_of(lambda: likelihoods(json.dumps({"choices": [choice]}).encode())) == "backend_garbled"


def test_a_loading_that_says_too_much_is_refused() -> None:
    head = b"HTTP/1.1 500 No\r\n\r\n"
    call = lambda: answered(head, lambda client: client.load("a", Path("/f")), again=b"x" * 65536)  # noqa: E731
    assert code_of(call) == "backend_refused"


def test_health_that_never_ends_is_none() -> None:
    assert answered(OK + b"\r\n", lambda client: client.healthy(), again=b"x") is False


def test_a_message_that_cannot_be_encoded_is_escaped() -> None:
    body = b'{"error": {"message": "too \\ud800 long\\u001b[2J"}}'
    head = b"HTTP/1.1 400 No\r\ncontent-length: %d\r\n\r\n" % len(body)
    with pytest.raises(BackendFailure) as caught:
        answered(head + body, lambda client: client.log_likelihoods("a", [1], [[5]]))
    assert caught.value.message == r"the backend refuses the text: too \ud800 long\x1b[2J"


@pytest.mark.parametrize(
    "given",
    [
        f"vllm=http://me:{SECRET}@host",
        f"vllm=http://me:{SECRET}@host:port",
        f"vllm=http://me:{SECRET}@",
        f"vllm=ftp://me:{SECRET}@host",
        f"vllm:http://me:{SECRET}@host",
        f"http://me:{SECRET}@host",
        f"vllm=http://host:port?key={SECRET}",
    ],
)
def test_no_message_repeats_a_password(given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_address(given)
    assert SECRET not in caught.value.message + (caught.value.hint or "")


@pytest.mark.parametrize("given", ["vllm=http://ho st", "vllm=http://host\0x", "vllm=unix:a\0b"])
def test_an_address_with_characters_that_none_has(given: str) -> None:
    with pytest.raises(ConfigError, match="is not the address of a backend"):
        read_address(given)


@pytest.mark.parametrize(
    ("variable", "value", "url"),
    [
        ("ALL_PROXY", "ftp://host", "http://host"),
        ("SSL_CERT_FILE", "/nonexistent/certificates", "https://host"),
        ("NO_PROXY", "", "http://xn--ä.de"),
    ],
)
def test_what_httpx_cannot_use_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, url: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match="--backend cannot be asked") as caught:
        VllmClient(read_address(f"vllm={url}"), None)
    assert "ALL_PROXY" in (caught.value.hint or "")
    assert "\n" not in caught.value.message
