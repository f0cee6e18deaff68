"""``serve --backend`` where vLLM refuses, is down, sends garbage or nothing, and where the setting is wrong."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorabank.bank.bank import Bank
from lorabank.core.config import SamplingConfig
from lorabank.core.errors import ConfigError, IncompatibleError, StorageError
from lorabank.exchange.servers import SERVERS, Verdict
from lorabank.models.answering import replies
from lorabank.models.answering.replies import GenerationRequest
from lorabank.serving.backends.address import EXAMPLE, Address, read_address
from lorabank.serving.backends.chosen import backend_of
from lorabank.serving.config import ServeConfig
from lorabank.serving.jobs import Job
from lorabank.workflows.asking.questions import Question
from tests.contract.fake_vllm import FakeVllm
from tests.contract.serving import Here, serving, until
from tests.contract.test_serving_backend import COMPLETIONS, LOAD, TEXTS, here, kept, make, place, vllm, written
from tests.contract.test_text_to_text import Place

__all__ = ["here", "make", "place", "vllm"]


@pytest.fixture
def run_chosen(place: Place) -> Callable[..., Any]:
    """``run_chosen(**config)``: the backend that settings of the server choose."""
    snapshot = Bank.open(place.bank).snapshot()
    return lambda **config: backend_of(place.bank, ServeConfig(**config), snapshot)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_what_is_not_a_sum_is_refused_and_not_servable(here: Here, vllm: FakeVllm) -> None:
    for model in ("ties", "gated"):
        answer = written(here, model)
        assert code(answer) == (422, "backend_refused")
        assert "the backend takes sums of adapters" in answer.json()["error"]["message"]
        assert "/v1/models" in answer.json()["error"]["message"]
    servable = {one["id"]: one["servable"] for one in here.get("/v1/models").json()["data"]}
    assert servable == dict.fromkeys(("pairs", "chat", "labelled", "routed", "mean"), True) | {
        "ties": False,
        "gated": False,
    }
    assert vllm.paths() == []


def test_a_gate_is_known_not_to_be_servable(here: Here) -> None:
    assert here.get("/v1/models/gated").json()["servable"] is False
    assert here.get("/v1/models/ties").json()["servable"] is True  # its rank is found when it is asked


def test_an_adapter_that_vllm_refuses(place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with FakeVllm(place.base, rank=1) as vllm, Here(place.bank, backend=vllm.address) as here:
        answer = written(here)
    assert code(answer) == (422, "backend_refused")
    assert "refuses the adapter of this model" in answer.text
    assert "/" not in answer.json()["error"]["message"]
    assert "LoRA rank 6 is greater than max_lora_rank 1" in caplog.text
    assert "--max-lora-rank" in caplog.text


def test_a_vllm_that_loads_no_adapters(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with FakeVllm(place.base, runtime_loading=False) as vllm, Here(place.bank, backend=vllm.address) as here:
        assert code(written(here)) == (422, "backend_refused")
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in caplog.text


def test_a_vllm_that_loads_an_adapter_and_does_not_know_it(here: Here, vllm: FakeVllm) -> None:
    vllm.bad[LOAD] = 200, "Success"
    assert code(written(here)) == (502, "backend_garbled")
    assert vllm.paths() == [COMPLETIONS, LOAD, COMPLETIONS]


def test_a_backend_that_is_down(here: Here, vllm: FakeVllm) -> None:
    until(lambda: here.get("/ready").status_code == 200)
    assert here.get("/ready").json()["backend"] == {"name": "vllm", "reachable": True}
    vllm.stop()
    answer = written(here)
    assert code(answer) == (503, "backend_unreachable")
    assert int(answer.headers["retry-after"]) > 0
    assert "unix" not in answer.text
    until(lambda: here.get("/ready").status_code == 503)
    ready = here.get("/ready")
    assert (ready.status_code, ready.json()["ready"], ready.json()["backend"]["reachable"]) == (503, False, False)
    health = here.get("/health")
    assert (health.status_code, health.json()["backend"]["reachable"]) == (200, False)
    assert here.post("/v1/route", {"model": "routed", "input": "a"}).status_code == 200
    vllm.start()
    assert written(here).status_code == 200


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, '{"error": {"message": "too long", "code": 400}}', (422, "backend_refused")),
        (400, '{"object": "error", "message": "too long", "code": 400}', (422, "backend_refused")),
        (404, '{"detail": "Not Found"}', (502, "backend_garbled")),
        (401, '{"error": "Unauthorized"}', (502, "backend_garbled")),
        (429, "", (503, "backend_busy")),
        (503, "", (503, "backend_busy")),
        (500, "<html>", (502, "backend_garbled")),
        (200, "<html>", (502, "backend_garbled")),
    ],
)
def test_statuses(here: Here, vllm: FakeVllm, status: int, body: str, expected: tuple[int, str]) -> None:
    vllm.bad[COMPLETIONS] = status, body
    answer = written(here)
    assert code(answer) == expected
    assert ("too long" in answer.text) == (status == 400)
    assert answer.headers.get("retry-after") == {429: "7", 503: "2"}.get(status)


CHOICE = '{"choices": [{"index": 0, "text": "a", "finish_reason": null, %s}]}'


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (["data: {"], (502, "backend_garbled")),
        (["data: []"], (502, "backend_garbled")),
        (["<html>"], (502, "backend_garbled")),
        (["data: {}"], (502, "backend_garbled")),
        (["data: " + CHOICE % '"token_ids": null'], (502, "backend_garbled")),
        (["data: " + CHOICE % '"token_ids": ["a"]'], (502, "backend_garbled")),
        (["data: " + CHOICE % '"token_ids": [true]'], (502, "backend_garbled")),
        (['data: {"error": {"message": "no memory"}}'], (502, "backend_garbled")),
        (["data: " + CHOICE % '"token_ids": [5]'], (503, "backend_unreachable")),
        (["data: [DONE]"], (503, "backend_unreachable")),
    ],
)
def test_streams(here: Here, vllm: FakeVllm, events: list[str], expected: tuple[int, str]) -> None:
    written(here)
    vllm.events = events
    assert code(written(here)) == expected
    vllm.events = None
    assert written(here).status_code == 200


@pytest.mark.parametrize("values", ["{}", '{"choices": [{"index": 0, "prompt_logprobs": []}]}', "[1]"])
def test_likelihoods_that_are_none(here: Here, vllm: FakeVllm, values: str) -> None:
    vllm.bad[COMPLETIONS] = 200, values
    assert code(here.post("/v1/classify", {"model": "labelled", "input": "sun 1"})) == (502, "backend_garbled")


def test_an_answer_that_cannot_be_decoded_is_an_error(
    here: Here, vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(*_: Any) -> str:
        raise IndexError("piece id is out of range")

    written(here)
    monkeypatch.setattr(replies, "decoded", decoded)
    answer = written(here, max_tokens=1)
    assert answer.status_code == 500
    assert "piece id" not in answer.text


@pytest.mark.parametrize("key", ["hunter2\n", "hunter2\r", "hunter 2", "hunt\u00e9r2"])
def test_a_key_that_is_no_token(run_chosen: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("VLLM_API_KEY", key)
    with pytest.raises(ConfigError, match="VLLM_API_KEY") as caught:
        run_chosen(backend=EXAMPLE)
    assert "hunt" not in caught.value.message + (caught.value.hint or "")


def test_a_stream_says_at_its_end_what_went_wrong(here: Here, vllm: FakeVllm) -> None:
    written(here)
    vllm.events = ["data: " + CHOICE % '"token_ids": [5]']
    answer = written(here, stream=True)
    assert answer.status_code == 200
    last = json.loads(answer.text.split("\n\n")[-2].removeprefix("data: "))
    assert last["error"]["code"] == "backend_unreachable"


def test_a_backend_that_is_silent(make: Callable[..., Here], vllm: FakeVllm) -> None:
    with make(seconds=1.0) as here:
        silent = threading.Event()
        vllm.tokens = lambda body: silent.wait(20) or iter(())  # type: ignore[method-assign]
        answer = written(here)
        silent.set()
    assert code(answer) == (503, "backend_silent")
    assert "retry-after" in answer.headers


def test_an_answer_that_takes_too_long_ends_where_it_is(make: Callable[..., Here], vllm: FakeVllm) -> None:
    with make(seconds=2.0) as here:
        written(here)
        vllm.held.set()
        (choice,) = kept(written(here, max_tokens=8))["choices"]
        assert choice["finish_reason"] == "length"
        assert vllm.hung_up.wait(20)


def test_a_state_that_vllm_would_compute_wrong(here: Here, vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SERVERS, "vllm", lambda served: Verdict(("use_dora: it does not compute DoRA",), ()))
    answer = written(here, "labelled", "sun 1")
    assert code(answer) == (422, "backend_refused")
    assert "use_dora: it does not compute DoRA" in answer.text
    assert here.get("/v1/models/labelled").json()["servable"] is False
    assert vllm.paths() == []
    assert list(Path(here.config.backend_folder or "").iterdir()) == []


def test_a_caller_that_hangs_up_ends_the_call_to_vllm(here: Here, vllm: FakeVllm) -> None:
    vllm.held.set()
    heard: list[Any] = []
    request = GenerationRequest(SamplingConfig(max_new_tokens=8))
    job = Job(Question("pairs", ({"role": "user", "content": TEXTS[0]},), request), heard.append, pieces=True)
    here.engine.submit([job])
    assert vllm.sent.wait(60)
    job.gone = True
    assert vllm.hung_up.wait(20)
    until(lambda: job.ended)


def test_texts_that_vllm_answers_count_as_waiting(make: Callable[..., Here], vllm: FakeVllm) -> None:
    with make(max_queue=2) as here:
        written(here)
        vllm.sent.clear()
        vllm.held.set()
        job = Job(Question("pairs", ({"role": "user", "content": "a"},), GenerationRequest(SamplingConfig())), print)
        here.engine.submit([job])
        until(lambda: vllm.sent.is_set())
        assert code(written(here, prompt=["a", "b"])) == (429, "queue_full")
        job.gone = True


def test_a_signal_ends_what_vllm_does_not_answer(place: Place, vllm: FakeVllm) -> None:
    vllm.held.set()
    answers: list[httpx.Response] = []
    with tempfile.TemporaryDirectory(prefix="s-") as folder:
        words = ("--backend", vllm.address, "--backend-folder", f"{folder}/adapters", "--grace", "0")
        with serving(place.bank, Path(folder), *words) as server:

            def ask() -> None:
                with server.client() as client:
                    answers.append(client.post(COMPLETIONS, json={"model": "pairs", "prompt": "a", "max_tokens": 9}))

            asking = threading.Thread(target=ask)
            asking.start()
            assert vllm.sent.wait(120)
            ended, _, err = server.end()
            asking.join(60)
    assert (ended, err) == (0, "")
    assert [answer.status_code for answer in answers] == [503]
    assert vllm.hung_up.wait(20)


def test_a_backend_that_is_not_one(run_chosen: Callable[..., Any]) -> None:
    for given in ("http://localhost", "tgi=http://localhost", "vllm=localhost:8000", "vllm=http://", "vllm=unix:"):
        with pytest.raises(ConfigError, match="is not the address of a backend") as caught:
            run_chosen(backend=given)
        assert "vllm=http://127.0.0.1:8000" in (caught.value.hint or "")
    with pytest.raises(ConfigError) as caught:
        run_chosen(backend="vllm=http://me:secret@localhost")
    assert "secret" not in caught.value.message
    for setting in ({"backend_folder": "x"}, {"backend_adapters": 8}):
        option = "--" + next(iter(setting)).replace("_", "-")
        with pytest.raises(ConfigError, match=f"{option} is about the backend"):
            run_chosen(**setting)


def test_a_folder_in_a_bank_is_refused(
    run_chosen: Callable[..., Any], place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bank's own adapters have the names of exported ones, so that the server would delete them."""
    (tmp_path / "link").symlink_to(place.bank / "adapters")
    for folder in (place.bank, place.bank / "adapters", place.bank / "made" / "here", tmp_path / "link"):
        with pytest.raises(ConfigError, match="is in a bank") as caught:
            run_chosen(backend=EXAMPLE, backend_folder=str(folder))
        assert (caught.value.hint, caught.value.unchanged) == ("name a folder elsewhere", "nothing was started")
    assert not (place.bank / "made").exists()
    with pytest.raises(StorageError, match="File name too long"):
        run_chosen(backend=EXAMPLE, backend_folder=str(tmp_path / ("x" * 300)))
    monkeypatch.chdir(tmp_path)
    run_chosen(backend=EXAMPLE, backend_folder="")  # the default, and not the folder of the shell


def test_a_url_may_end_with_v1() -> None:
    assert read_address("vllm=https://host:8443/models/v1/") == Address("vllm", "https://host:8443/models")
    assert read_address("vllm=http://[::1]:8000") == Address("vllm", "http://[::1]:8000")


def test_classifiers_have_no_backend(make_lab: Callable[[str], Any], vllm: FakeVllm) -> None:
    bank = make_lab("bert").bank("olora", 1)
    with pytest.raises(IncompatibleError, match="this bank's tasks are SEQ_CLS"):
        Here(bank, backend=vllm.address)
