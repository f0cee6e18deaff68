"""The server's endpoints and limits, with a classifier's bank, in this process."""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import lorabank
from lorabank import api
from lorabank.core.config import ComposeConfig, PredictConfig
from lorabank.workflows.asking.mixed import MixedAnswers
from tests.contract.conftest import TASKS, Lab
from tests.contract.serving import Here, until
from tests.contract.test_loads import counts

__all__ = ["counts"]

CHAT = "/v1/chat/completions"
GUIDE = (Path(__file__).parents[2] / "docs/serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def bank(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Path(shutil.copytree(lab.bank("olora", 3), tmp_path_factory.mktemp("served") / "bank"))
    api.compose(made, ComposeConfig(mode="routed", router="kmeans", device="cpu"))
    return made


@pytest.fixture(scope="module")
def here(bank: Path) -> Any:
    with Here(bank) as server:
        yield server


def said(text: str, model: str = "one", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


# ---------------------------------------------------------------------------------------------------------- answers


def test_models_are_tasks_and_compositions(here: Here) -> None:
    listed = here.get("/v1/models").json()
    assert listed["object"] == "list"
    models = {one["id"]: one for one in listed["data"]}
    assert list(models) == [*TASKS, "routed"]
    assert {one["object"] for one in models.values()} == {"model"}
    two, routed = models["two"], models["routed"]
    assert (two["kind"], two["labels"], two["parent"]) == ("task", ["part0", "part1", "part2"], "base")
    assert (routed["kind"], routed["mode"], routed["members"]) == ("composition", "routed", list(TASKS))
    assert all(one["servable"] and one["created"] > 1_700_000_000 for one in models.values())
    assert here.get("/v1/models/two").json() == two
    assert here.get("/v1/models/nowhere").status_code == 404


def test_classify_says_what_predict_says(here: Here, bank: Path, texts: list[str]) -> None:
    with lorabank.open(bank) as session:
        said = {model: session.predict(texts, PredictConfig(task=model)) for model in TASKS}
        said["routed"] = session.predict(texts, PredictConfig(composition="routed"))
    for model, expected in said.items():
        answer = here.post("/v1/classify", {"model": model, "input": texts, "all_labels": True})
        assert answer.status_code == 200
        for i, (one, alone) in enumerate(zip(answer.json()["data"], expected, strict=True)):
            assert (one["index"], one["label"]) == (i, alone.label)
            assert one["probability"] == pytest.approx(alone.probability, rel=1e-4)
            assert sum(one["labels"].values()) == pytest.approx(1)
            assert one["lorabank"]["task"] == alone.task
            margin = getattr(alone, "margin", None)
            assert one["lorabank"]["margin"] == (None if margin is None else pytest.approx(margin, abs=1e-4, rel=1e-3))
        headers = answer.headers
        assert headers["x-lorabank-task"] == expected[0].task
        assert headers["x-lorabank-task-id"] == expected[0].task_id
        assert float(headers["x-lorabank-probability"]) == pytest.approx(expected[0].probability, rel=1e-4)
        assert headers["x-lorabank-adapters"] == ",".join(f"{k}={v:.4g}" for k, v in expected[0].adapters.items())
        assert int(headers["x-lorabank-bank-revision"]) == len(api.history(bank))
        assert ("x-lorabank-margin" in headers) == (model == "routed")


def test_one_text_needs_no_list_and_labels_only_where_asked(here: Here) -> None:
    (one,) = here.post("/v1/classify", {"model": "one", "input": "a b"}).json()["data"]
    assert "labels" not in one


def test_route_says_who_would_answer_and_asks_no_head(
    here: Here, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = here.post("/v1/classify", {"model": "routed", "input": texts}).json()["data"]
    monkeypatch.setattr(MixedAnswers, "_label", None)
    found = here.post("/v1/route", {"model": "routed", "input": texts})
    assert [one["task"] for one in found.json()["data"]] == [one["lorabank"]["task"] for one in expected]
    assert [one["margin"] for one in found.json()["data"]] == [one["lorabank"]["margin"] for one in expected]
    assert found.headers["x-lorabank-task"] == found.json()["data"][0]["task"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_label_is_the_answer_to_a_conversation(here: Here, stream: bool) -> None:
    (expected,) = here.post("/v1/classify", {"model": "two", "input": "a b", "all_labels": True}).json()["data"]
    answer = here.post(CHAT, said("a b", "two", logprobs=True, top_logprobs=2, stream=stream))
    assert answer.headers["x-lorabank-task"] == "two"
    if stream:
        events = answer.text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        assert chunks[0]["lorabank"]["task"] == "two"
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        content, choice = "".join(delta.get("content", "") for delta in deltas), chunks[-1]["choices"][0]
        assert len({chunk["id"] for chunk in chunks}) == 1
    else:
        document = answer.json()
        (choice,) = document["choices"]
        content = choice["message"]["content"]
        assert document["lorabank"]["probability"] == pytest.approx(expected["probability"])
        assert document["usage"]["completion_tokens"] == 0
    assert (content, choice["finish_reason"]) == (expected["label"], "stop")
    (token,) = choice["logprobs"]["content"]
    assert token["logprob"] == pytest.approx(math.log(expected["probability"]))
    assert [one["token"] for one in token["top_logprobs"]] == list(expected["labels"])[:2]


def test_completions_take_several_prompts(here: Here) -> None:
    answer = here.post("/v1/completions", {"model": "routed", "prompt": ["a b", "x y"], "logprobs": 1}).json()
    found = here.post("/v1/classify", {"model": "routed", "input": ["a b", "x y"]}).json()["data"]
    labels = [one["label"] for one in found]
    assert [choice["text"] for choice in answer["choices"]] == labels
    assert [choice["logprobs"]["tokens"] for choice in answer["choices"]] == [[label] for label in labels]
    assert all(len(choice["logprobs"]["top_logprobs"][0]) == 1 for choice in answer["choices"])


def test_calls_that_come_together_share_a_batch(here: Here, texts: list[str]) -> None:
    before = here.meter.batches._sum.get()
    bodies = [{"model": TASKS[i % 3], "input": text} for i, text in enumerate(texts)]
    calls = [("POST", "/v1/classify", {"json": body}) for body in bodies]
    found = here.together(*calls)
    alone = [here.request(method, path, **more) for method, path, more in calls]
    for one, other in zip(found, alone, strict=True):
        (first,), (second,) = one.json()["data"], other.json()["data"]
        assert first["label"] == second["label"]
        assert first["probability"] == pytest.approx(second["probability"], rel=1e-5)
    assert here.meter.batches._sum.get() == before + 2 * len(texts)


def test_the_bank_without_paths_of_the_machine(here: Here, bank: Path, lab: Lab) -> None:
    document = here.get("/v1/bank")
    assert [task["name"] for task in document.json()["tasks"]] == list(TASKS)
    assert document.json()["revision"] == len(api.history(bank))
    for secret in (str(bank), str(lab.folder)):
        assert secret not in document.text + here.get("/v1/models").text


def test_health_ready_and_metrics(here: Here) -> None:
    assert here.get("/health").json() == {"status": "ok"}
    assert here.get("/ready").json()["ready"] is True
    here.post("/v1/classify", {"model": "one", "input": "a"})
    page = here.get("/metrics").text
    assert 'lorabank_answers_total{model="one",task="one",task_id="given"}' in page
    assert 'lorabank_requests_total{endpoint="/v1/classify",status="200"}' in page
    assert "lorabank_batch_texts_bucket" in page
    here.get("/made/up/path")
    assert "made" not in here.get("/metrics").text


def test_the_guide_s_call_and_answer(here: Here) -> None:
    """The call is taken as it is shown, and the shown answer has the form of the real one."""
    body = json.loads(re.findall(r"-d '(\{.*\})'", GUIDE)[0])
    shown = json.loads(re.findall(r"```json\n(.*?)```", GUIDE, re.S)[0])
    answer = here.post("/v1/classify", body)
    assert answer.status_code == 200
    real = answer.json()
    assert list(shown) == list(real)
    for one, other in zip(shown["data"], real["data"], strict=True):
        assert list(one) == list(other)
        assert list(one["lorabank"]) == list(other["lorabank"])
    first, headers = shown["data"][0], dict(re.findall(r"^(x-lorabank-\S+): (.*)$", GUIDE, re.M))
    assert set(headers) == {name for name in answer.headers if name.startswith("x-lorabank")}
    assert headers["x-lorabank-task"] == first["lorabank"]["task"]
    assert headers["x-lorabank-probability"] == f"{first['probability']:.6g}"
    assert headers["x-lorabank-margin"] == f"{first['lorabank']['margin']:.6g}"


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (CHAT, said("a", "nowhere"), 404, "there is no task or composition 'nowhere'"),
        (CHAT, said("a", "rooted"), 404, "lists them. Did you mean 'routed'?"),
        (CHAT, {"model": "one"}, 422, "messages: Field required"),
        (CHAT, {"model": "one", "messages": []}, 422, "messages"),
        (CHAT, said("a", temperature=3), 422, "temperature"),
        (CHAT, said("a", temperature="hot"), 422, "temperature"),
        (CHAT, said("a", n=2), 422, "the server does not follow 'n'"),
        (CHAT, said("a", tools=[{"type": "function"}]), 422, "the server does not follow 'tools'"),
        (CHAT, said("a\0b"), 422, "NUL"),
        (CHAT, {"model": "one", "messages": [{"role": "assistant", "content": "a"}]}, 422, "not the user's"),
        (
            CHAT,
            {"model": "one", "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
            422,
            "answers single messages",
        ),
        ("/v1/classify", {"model": "one", "input": []}, 422, "input"),
        ("/v1/classify", {"model": "one", "input": ["a"] * 65}, 422, "at most 64 texts"),
        ("/v1/completions", {"model": "one", "prompt": ["a", "b"], "stream": True}, 422, "a stream answers one"),
        ("/v1/nowhere", {}, 404, "no such path"),
        ("/chat/completions", {}, 404, "begin with /v1/"),
        ("/health", {}, 405, "does not accept the method"),
    ],
)
def test_an_error_has_openai_s_form(here: Here, path: str, body: Any, status: int, message: str) -> None:
    answer = here.post(path, body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


def test_neutral_values_of_unknown_fields_are_taken(here: Here) -> None:
    more = {"n": 1, "user": "somebody", "tools": [], "response_format": {"type": "text"}, "presence_penalty": 0}
    assert here.post(CHAT, said("a", **more)).status_code == 200


def test_a_body_that_is_not_json(here: Here) -> None:
    answer = here.request("POST", CHAT, content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_bug_is_not_shown_to_callers(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(MixedAnswers, "_label", broken)
    answer = here.post(CHAT, said("a"))
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert "secret" not in answer.text
    monkeypatch.undo()
    assert here.post(CHAT, said("a")).status_code == 200


# ----------------------------------------------------------------------------------------------------------- limits


def test_a_token_is_asked_for(bank: Path) -> None:
    with Here(bank, token="s3cret") as server:
        for given in (None, "Bearer wrong", "s3cret", "bearer s3cret", "Bearer s3cretx"):
            headers = {} if given is None else {"authorization": given}
            answer = server.get("/v1/models", headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert answer.json()["error"]["type"] == "authentication_error"
        assert server.get("/v1/models", headers={"authorization": "Bearer s3cret"}).status_code == 200
        assert server.get("/metrics").status_code == 401
        assert server.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:8000", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("[::1]", 200),
        ("evil.example", 403), ("evil.example:8000", 403), ("127.0.0.1.evil.example", 403), ("", 403),
    ],
)  # fmt: skip
def test_without_a_token_only_a_loopback_name_is_answered(here: Here, host: str, status: int) -> None:
    assert here.get("/v1/models", headers={"host": host}).status_code == status


def test_a_large_body_is_not_read(bank: Path) -> None:
    with Here(bank, max_body=2000) as server:
        assert server.post(CHAT, said("a" * 1000)).status_code == 200
        assert server.post(CHAT, said("a" * 3000)).status_code == 413

        async def parts() -> Any:
            for _ in range(100):
                yield b" " * 100

        streamed = server.request("POST", CHAT, content=parts(), headers={"content-type": "application/json"})
        assert streamed.status_code == 413


def test_a_full_queue_says_when_to_ask_again(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    working, go_on = threading.Event(), threading.Event()
    original = MixedAnswers._label

    def slow(*args: Any) -> None:
        working.set()
        assert go_on.wait(60)
        original(*args)

    monkeypatch.setattr(MixedAnswers, "_label", slow)
    with Here(bank, max_queue=3) as server:
        first: list[Any] = []
        thread = threading.Thread(target=lambda: first.append(server.post(CHAT, said("a"))))
        thread.start()
        assert working.wait(60)
        body = {"model": "one", "input": ["a", "b"]}
        waiting: list[Any] = []
        second = threading.Thread(target=lambda: waiting.append(server.post("/v1/classify", body)))
        second.start()
        until(lambda: len(server.engine._waiting) == 2)
        refused = server.post("/v1/classify", body)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        go_on.set()
        thread.join()
        second.join()
    assert [first[0].status_code, waiting[0].status_code] == [200, 200]


def test_what_waits_too_long_is_refused(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = MixedAnswers._label

    def slow(*args: Any) -> None:
        time.sleep(0.5)
        original(*args)

    monkeypatch.setattr(MixedAnswers, "_label", slow)
    with Here(bank, seconds=0.2, batch_size=1) as server:
        answers = server.together(*[("POST", CHAT, {"json": said("a")})] * 3)
    codes = sorted(answer.status_code for answer in answers)
    assert codes[0] == 200
    assert codes[-1] == 503
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 503)


def test_a_server_that_closes_finishes_what_is_under_way(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = MixedAnswers._label
    with Here(bank) as server:

        def closing(*args: Any) -> None:
            server.gate.closing = True
            original(*args)

        monkeypatch.setattr(MixedAnswers, "_label", closing)
        assert server.post(CHAT, said("a")).status_code == 200
        refused = server.post(CHAT, said("a"))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert server.get("/health").status_code == 200


# ------------------------------------------------------------------------------------------------ changes of the bank


def test_what_others_add_is_answered_without_a_restart(
    lab: Lab, tmp_path: Path, counts: Any, texts: list[str]
) -> None:
    """While calls come, of which none is lost; and the base is not loaded again."""
    path = Path(shutil.copytree(lab.bank("olora", 1), tmp_path / "bank"))
    with Here(path) as server:
        server.post(CHAT, said("a"))
        codes: list[int] = []
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                codes.append(server.post("/v1/classify", {"model": "one", "input": texts}).status_code)

        asker = threading.Thread(target=ask)
        asker.start()
        lab.add(path, "two")
        loaded = counts["loads"]
        added = time.monotonic()
        until(lambda: server.post(CHAT, said("a", "two")).status_code == 200, 10)
        assert time.monotonic() - added < 5  # two seconds on a machine with nothing else to do
        expected = api.predict(path, ["a"], PredictConfig(task="two"))[0]
        found = server.post("/v1/classify", {"model": "two", "input": "a"})
        assert found.json()["data"][0]["label"] == expected.label
        assert int(found.headers["x-lorabank-bank-revision"]) == len(api.history(path))
        api.remove(path, "two")
        until(lambda: server.post(CHAT, said("a", "two")).status_code == 404, 10)
        done.set()
        asker.join()
        assert counts["loads"] <= loaded + 1  # that of `predict` above, in this process too
    assert set(codes) == {200}
    assert any("revision" in notice for notice in server.notices)


def test_a_bank_without_tasks_waits_for_one(lab: Lab, tmp_path: Path) -> None:
    path = Path(shutil.copytree(lab.bank("olora", 0), tmp_path / "bank"))
    with Here(path) as server:
        assert server.get("/v1/models").json()["data"] == []
        assert server.post(CHAT, said("a")).status_code == 404
        lab.add(path, "one")
        until(lambda: server.post(CHAT, said("a")).status_code == 200, 10)
