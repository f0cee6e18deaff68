"""A served language model: as a process on a Unix socket, asked by OpenAI's own client, and in this process."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from lorabank import api
from lorabank.core.config import ComposeConfig, GenerateConfig, PredictConfig, SamplingConfig
from lorabank.models.answering.replies import GenerationRequest
from lorabank.serving.engine import Engine
from lorabank.serving.errors import CallError
from lorabank.serving.jobs import Job
from lorabank.workflows.asking import mixed
from lorabank.workflows.asking.questions import Answered, Question
from tests.contract.serving import HOST, Here, Process, listens, serving, until
from tests.contract.test_text_to_text import Place
from tests.faults.server_calls import ask_broken

TOKEN = "a-token-for-tests"


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any, save_language_model: Any) -> Place:
    folder = tmp_path_factory.mktemp("served")
    made = Place("llama", folder, save_language_model(folder / "base", "llama"))
    api.compose(made.bank, ComposeConfig(mode="routed", router="kmeans", device="cpu"))
    free = ComposeConfig(mode="merged", name="free", tasks="chat,pairs", scores=False, device="cpu")
    api.compose(made.bank, free)
    return made


@pytest.fixture(scope="module")
def server(place: Place, tmp_path_factory: Any) -> Iterator[Process]:
    with serving(place.bank, tmp_path_factory.mktemp("s"), LORABANK_TOKEN=TOKEN) as process:
        yield process


@pytest.fixture
def client(server: Process) -> Iterator[openai.OpenAI]:
    http = httpx.Client(transport=httpx.HTTPTransport(uds=str(server.socket)))
    with openai.OpenAI(base_url=f"{HOST}/v1", api_key=TOKEN, http_client=http, max_retries=0) as made:
        yield made


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_a_conversation_with_every_endpoint(place: Place, client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert list(models)[:7] == ["labelled", "pairs", "chat", "alpaca", "shared", "plain", "routed"]
    assert models["labelled"].labels == ["cold", "warm"]  # type: ignore[attr-defined]
    assert client.models.retrieve("chat").kind == "task"  # type: ignore[attr-defined]

    raw = client.chat.completions.with_raw_response.create(
        model="chat", messages=user("Tell me about snow"), max_tokens=12
    )
    answer = raw.parse()
    (expected,) = api.generate(
        place.bank, ["Tell me about snow"], GenerateConfig(task="chat", max_new_tokens=12, device="cpu")
    )
    assert answer.choices[0].message.content == expected.label
    assert raw.headers["x-lorabank-task"] == answer.lorabank["task"] == "chat"  # type: ignore[attr-defined]
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 12
    turns = [*user("Tell me about snow"), {"role": "assistant", "content": "It is cold."}, *user("And fog?")]
    assert client.chat.completions.create(model="chat", messages=turns, max_tokens=3).choices[0].finish_reason

    stream = client.chat.completions.create(
        model="chat",
        messages=user("Tell me about snow"),
        max_completion_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == expected.label
    assert len(pieces) > 1
    assert chunks[-1].usage == answer.usage
    assert chunks[-2].choices[0].finish_reason == answer.choices[0].finish_reason

    label = client.chat.completions.create(
        model="labelled", messages=user("sun 0"), logprobs=True, top_logprobs=2
    ).choices[0]
    (predicted,) = api.predict(place.bank, ["sun 0"], PredictConfig(task="labelled", device="cpu"))
    assert label.message.content == predicted.label
    assert label.logprobs is not None
    assert label.logprobs.content is not None
    assert len(label.logprobs.content[0].top_logprobs) == 2

    completion = client.completions.create(
        model="pairs", prompt=["What of ice?", "What of dew?"], max_tokens=8, temperature=1.5, seed=3
    )
    drawn = api.generate(
        place.bank,
        ["What of ice?", "What of dew?"],
        GenerateConfig(task="pairs", max_new_tokens=8, temperature=1.5, seed=3, device="cpu"),
    )
    assert [choice.text for choice in completion.choices] == [one.label for one in drawn]
    whole = client.completions.create(model="plain", prompt="The fog", max_tokens=12).choices[0].text
    streamed = client.completions.create(model="plain", prompt="The fog", max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole
    stop = whole[len(whole) // 2]
    cut = client.completions.create(model="plain", prompt="The fog", max_tokens=12, stop=stop).choices[0]
    assert (cut.text, cut.finish_reason) == (whole[: whole.index(stop)].strip(), "stop")

    labelled = client.post("/classify", body={"model": "labelled", "input": ["sun 0"]}, cast_to=httpx.Response)
    assert labelled.json()["data"][0]["label"] == predicted.label
    routed = client.post("/route", body={"model": "routed", "input": "What of ice?"}, cast_to=httpx.Response)
    assert routed.json()["data"][0]["task_id"] == "routed"
    assert client.get("/bank", cast_to=httpx.Response).json()["base"]["task_type"] == "CAUSAL_LM"


def test_the_guide_s_program(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = (Path(__file__).parents[2] / "docs/serving.md").read_text(encoding="utf-8")
    program, shown = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", guide, re.S)[0]
    monkeypatch.setattr(openai, "OpenAI", lambda base_url, api_key: client)
    exec(program, {})
    models, said = capsys.readouterr().out.split("\n", 1)
    assert json.loads(models.replace("'", '"'))[:2] == ["labelled", "pairs"]
    assert said.split()[-1] in models
    assert [len(line.split()) for line in shown.splitlines()] == [3, 2]


def test_errors_are_those_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no task or composition 'nowhere'"):
        client.chat.completions.create(model="nowhere", messages=user("a"))
    with pytest.raises(openai.UnprocessableEntityError, match="logprobs are those of labels"):
        client.chat.completions.create(model="chat", messages=user("a"), logprobs=True, stream=True)
    with pytest.raises(openai.UnprocessableEntityError, match="answers single messages"):
        client.chat.completions.create(model="pairs", messages=[*user("a"), *user("b")])
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_sigterm_refuses_new_calls_and_finishes_what_is_under_way(place: Place, tmp_path: Path) -> None:
    long = {"model": "plain", "prompt": "The fog", "max_tokens": 250, "temperature": 2.0, "seed": 1, "stream": True}
    with serving(place.bank, tmp_path, "--json") as server, server.client() as http, server.client() as other:
        assert other.get("/v1/models").status_code == 200
        with http.stream("POST", "/v1/completions", json=long) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            server.process.send_signal(signal.SIGTERM)

            def refused() -> bool:
                return not listens(server.socket) or other.get("/v1/models").status_code == 503

            until(refused, 10)
            rest = [first, *lines]
        assert rest[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(line.removeprefix("data: ")) for line in rest if line.startswith("data: {")]
        assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
        out, err = server.process.communicate(timeout=60)
        assert server.process.returncode == 0, err
        started = json.loads(out)
        assert started["address"] == f"unix:{server.socket}"
        assert started["tasks"] == ["labelled", "pairs", "chat", "alpaca", "shared", "plain"]
        assert not server.socket.exists()


def test_what_another_process_adds_answers_within_seconds(place: Place, server: Process) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    with server.client(headers=headers) as http:
        done = threading.Event()
        codes: list[int] = []

        def ask() -> None:
            with server.client(headers=headers) as own:
                body = {"model": "labelled", "input": ["sun 0", "rain 1"]}
                while not done.is_set():
                    codes.append(own.post("/v1/classify", json=body).status_code)

        asker = threading.Thread(target=ask)
        asker.start()
        api.compose(place.bank, ComposeConfig(mode="merged", name="sum", scores=False, device="cpu"))
        added = time.monotonic()
        body = {"model": "sum", "input": "sun 0"}
        until(lambda: http.post("/v1/classify", json=body).status_code == 200, 20)
        took = time.monotonic() - added
        done.set()
        asker.join()
    assert took < 5  # two seconds where nothing else computes
    assert set(codes) == {200}


def test_ctrl_c_while_the_model_is_loaded(place: Place, tmp_path: Path) -> None:
    server = Process(place.bank, tmp_path / "s", "--json")
    try:
        assert server.process.stdout is not None
        started = json.loads(server.process.stdout.readline())
        assert started["address"] == f"unix:{server.socket}"
        code, _, err = server.end(signal.SIGINT)
    finally:
        server.process.kill()
    assert (code, err) == (0, "")
    assert not server.socket.exists()


# ----------------------------------------------------------------------------------------------------- in this process


@pytest.fixture(scope="module")
def here(place: Place) -> Iterator[Here]:
    with Here(place.bank, max_new_tokens=250) as server:
        yield server


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": user("Tell me about snow"), "max_tokens": 3, **more}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/classify", {"model": "chat", "input": ["Tell me about snow", "b"]}, "model"),
        ("/v1/classify", {"model": "free", "input": "What of ice?"}, "model"),
        ("/v1/chat/completions", chat("chat", logprobs=True), "logprobs"),
        ("/v1/chat/completions", chat("chat", logprobs=True, stream=True), "logprobs"),
        ("/v1/completions", {"model": "pairs", "prompt": ["What of ice?", "b"], "logprobs": 1}, "logprobs"),
        ("/v1/completions", {"model": "free", "prompt": "What of ice?", "logprobs": 1, "stream": True}, "logprobs"),
    ],
)
def test_labels_of_free_text_are_refused_before_anything_is_generated(
    here: Here, path: str, body: dict[str, Any], param: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated = []
    monkeypatch.setattr(mixed, "write", lambda *asked: generated.append(asked))
    answer = here.post(path, body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
    assert "free text" in answer.json()["error"]["message"]
    assert generated == []


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_generated_for_a_caller_that_hangs_up(
    here: Here, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller hangs up after the first token, and the model waits with the second one until that is known."""
    begun, ends, heard = threading.Event(), [], Engine._heard

    def slowly(self: Engine, job: Job) -> Question:
        question = heard(self, job)
        over = question.generation.over
        assert over is not None

        def after_each_token() -> bool:
            begun.set()
            until(lambda: job.gone, 20)
            return over()

        return replace(question, generation=replace(question.generation, over=after_each_token))

    monkeypatch.setattr(Engine, "_heard", slowly)
    monkeypatch.setattr(here.meter, "answered", lambda model, one: ends.append(one.written))
    body = json.dumps({"model": "plain", "prompt": "The fog", "max_tokens": 250, "stream": stream}).encode()

    async def ask() -> None:
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if given:
                return given.pop()
            await asyncio.to_thread(begun.wait, 60)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
        await here.gate(scope, receive, send)

    asyncio.run(ask())
    until(lambda: ends)
    assert [(end.finish, end.tokens) for end in ends] == [("ended", 1)]


def test_a_stream_goes_through_the_failure_of_another_text(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are in one batch, which fails after some pieces; the good one's pieces come once each."""
    events: dict[str, list[Any]] = {"The fog": [], "bad": []}
    tokens, heard = Counter[str](), Engine._heard

    def broken(self: Engine, job: Job) -> Question:
        question = heard(self, job)

        def after_each_token() -> bool:
            tokens[question.text] += 1
            if question.text == "bad" and tokens["The fog"] > 4:
                raise RuntimeError("a bug")
            return False

        return replace(question, generation=replace(question.generation, over=after_each_token))

    def job(text: str) -> Job:
        asked = GenerationRequest(SamplingConfig(max_new_tokens=12, temperature=2.0, seed=5))
        return Job(Question("plain", ({"role": "user", "content": text},), asked), events[text].append, pieces=True)

    alone = {"model": "plain", "prompt": "The fog", "max_tokens": 12, "temperature": 2.0, "seed": 5}
    expected = here.post("/v1/completions", alone).json()["choices"][0]["text"]
    monkeypatch.setattr(Engine, "_heard", broken)
    here.engine.submit([job("The fog"), job("bad")])
    until(lambda: all(any(isinstance(one, Answered | Exception) for one in found) for found in events.values()))
    good = events["The fog"]
    assert good[-1].text == expected
    assert "".join(one for one in good if isinstance(one, str)) == expected
    assert isinstance(events["bad"][-1], CallError)
    assert tokens["The fog"] > 12


def test_no_input_makes_a_language_model_s_server_fail(here: Here) -> None:
    before = here.post("/v1/chat/completions", chat("chat")).json()["choices"]
    heard = ask_broken(here, ("chat", "labelled", "pairs", "plain", "routed", "free"), range(300))
    assert heard.wrong == []
    assert heard.codes[200] > 6
    assert {400, 404, 405, 422} <= set(heard.codes)
    assert here.post("/v1/chat/completions", chat("chat")).json()["choices"] == before
