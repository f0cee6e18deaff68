"""What fails while a bank is served: a new state, a text, a stored file, and the end of the server."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorabank import api
from lorabank.core.config import SamplingConfig
from lorabank.core.errors import ConfigError, DamagedError, ExistsError, StorageError
from lorabank.core.observer import SilentObserver
from lorabank.models.answering.replies import GenerationRequest
from lorabank.serving import engine as engines
from lorabank.serving import run
from lorabank.serving.config import TOKEN, ServeConfig
from lorabank.serving.engine import Engine
from lorabank.serving.jobs import Event, Job
from lorabank.workflows.asking import planned
from lorabank.workflows.asking.mixed import MixedAnswers
from lorabank.workflows.asking.questions import Answered, Question
from tests.contract.conftest import Lab
from tests.contract.serving import HOST, Here, listens, until

CLASSIFY = "/v1/classify"
ASKED = {"model": "one", "input": "a b"}


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Look at the bank more often than a server does; no model is loaded behind a test's end.

    transformers changes torch's functions while it loads a model, for all threads: what two of them load at once may
    leave these changed for good.
    """
    monkeypatch.setattr(engines, "POLL", 0.02)
    yield
    for thread in threading.enumerate():
        if thread.name == "lorabank-model":
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def bank(lab: Lab, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lab.bank("olora", 1), tmp_path / "bank"))


class Blocked:
    """A model that answers when it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.working, self.go_on = threading.Event(), threading.Event()
        original = MixedAnswers._label

        def label(*args: Any) -> None:
            self.working.set()
            assert self.go_on.wait(60)
            original(*args)

        monkeypatch.setattr(MixedAnswers, "_label", label)


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Blocked]:
    model = Blocked(monkeypatch)
    yield model
    model.go_on.set()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    return thread, found


# ---------------------------------------------------------------------------------------------------- a new state


@pytest.mark.parametrize("reason", [RuntimeError("a bug"), DamagedError("a file is damaged")])
def test_a_state_that_cannot_be_loaded_leaves_the_earlier_one_and_is_tried_again(
    bank: Path, reason: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[bool] = []
    broken = threading.Event()

    def made(*args: Any) -> MixedAnswers:
        if broken.is_set():
            tries.append(True)
            raise reason
        return MixedAnswers(*args)

    with Here(bank) as server:
        before = server.post(CLASSIFY, ASKED)
        monkeypatch.setattr(engines, "MixedAnswers", made)
        broken.set()
        api.rename(bank, "one", "uno")
        until(lambda: len(tries) > 2)
        during = server.post(CLASSIFY, ASKED)  # the catalogue looks again only where a name is unknown
        assert during.json() == before.json()
        behind = server.post(CLASSIFY, {"model": "uno", "input": "a b"})
        assert (behind.status_code, behind.json()["error"]["code"]) == (503, "not_ready")
        broken.clear()
        until(lambda: server.engine.revision == len(api.history(bank)))
        assert server.post(CLASSIFY, {"model": "uno", "input": "a b"}).status_code == 200
    (said,) = errors(caplog)
    assert said.startswith("the bank's new state cannot be loaded, so the earlier one answers: ")
    assert str(reason) in said


def test_a_state_that_cannot_be_loaded_is_not_tried_all_the_time(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments: list[float] = []

    def broken(*_: Any) -> MixedAnswers:
        moments.append(engines.time.monotonic())
        raise RuntimeError("a bug")

    with Here(bank) as server:
        monkeypatch.setattr(engines, "MixedAnswers", broken)
        api.set_note(bank, "one", "a change")
        until(lambda: len(moments) > 4)
        assert server.post(CLASSIFY, ASKED).status_code == 200
    waits = [later - earlier for earlier, later in pairwise(moments)]
    assert all(wait >= 0.02 * 2**i for i, wait in enumerate(waits))


def test_the_revision_is_that_of_the_state_that_answered(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Here(bank) as server:
        newest = len(api.history(bank))
        monkeypatch.setattr(Engine, "revision", property(lambda self: 999))  # the bank has changed since
        chat = {"model": "one", "messages": [{"role": "user", "content": "a"}]}
        calls = [
            (CLASSIFY, ASKED),
            ("/v1/route", ASKED),
            ("/v1/completions", {"model": "one", "prompt": "a"}),
            ("/v1/chat/completions", chat),
            ("/v1/chat/completions", {**chat, "stream": True}),
        ]
        for path, body in calls:
            answer = server.post(path, body)
            assert answer.headers["x-lorabank-bank-revision"] == str(newest)
            assert f'"bank_revision":{newest}' in answer.text.replace(" ", "")


# --------------------------------------------------------------------------------------------------------- a text


@pytest.mark.parametrize("reason", [RuntimeError("a bug"), StorageError("no room at /srv/bank")])
def test_only_the_text_that_is_the_reason_fails(
    bank: Path, reason: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original, batches = MixedAnswers._label, []

    def label(self: MixedAnswers, parts: Any, questions: Any, *rest: Any) -> None:
        batches.append(len(parts))
        if any(question.text == "bad" for question in questions):
            raise reason
        original(self, parts, questions, *rest)

    monkeypatch.setattr(MixedAnswers, "_label", label)
    with Here(bank) as server:
        ends: dict[str, Event] = {}

        def job(text: str) -> Job:
            question = Question("one", ({"role": "user", "content": text},), GenerationRequest(SamplingConfig()))
            return Job(question, lambda event: ends.__setitem__(text, event))

        server.engine.submit([job(text) for text in ("a", "bad", "b")])
        until(lambda: len(ends) == 3 and all(isinstance(end, Answered | Exception) for end in ends.values()))
        until(lambda: batches == [3, 1, 1, 1])
    assert [type(ends[text]).__name__ for text in ("a", "bad", "b")] == ["Answered", "CallError", "Answered"]
    (said,) = errors(caplog)
    assert "a text to 'one' was not answered" in said
    assert str(reason) in said
    assert "/srv" not in str(ends["bad"])


def test_a_damaged_file_is_the_operator_s_to_read_about(bank: Path, caplog: pytest.LogCaptureFixture) -> None:
    (file,) = (bank / "adapters").rglob("adapter_model.safetensors")
    file.chmod(0o600)
    content = file.read_bytes()
    file.write_bytes(content[:-4] + bytes(byte ^ 255 for byte in content[-4:]))
    with Here(bank) as server:
        answers = [server.post(CLASSIFY, ASKED) for _ in range(2)]
        assert server.get("/v1/models").status_code == 200
    for answer in answers:
        assert answer.status_code == 500
        assert answer.json()["error"]["message"].startswith("a stored file of this model is damaged; GET /v1/models")
        assert str(bank) not in answer.text
    (said,) = errors(caplog)
    assert file.parent.name[:12] in said
    assert f"lorabank -b {bank} " in said


@pytest.mark.parametrize("kind", [ConfigError, ExistsError, DamagedError, StorageError])
def test_no_error_names_the_server_s_files(bank: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise kind(f"{bank}/x: broken", hint=f"look into {bank}")

    monkeypatch.setattr(planned, "responder_of", broken)
    with Here(bank) as server:
        answer = server.post(CLASSIFY, ASKED)
    assert answer.status_code >= 422
    assert str(bank) not in answer.text


def test_a_catalogue_that_cannot_be_read_is_logged(bank: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Here(bank) as server:
        server.engine.stop()
        (bank / "bank.db").unlink()
        (bank / "bank.db").write_bytes(b"not a database" * 1000)
        for file in bank.glob("bank.db-*"):
            file.unlink()
        answer = server.get("/v1/models")
    assert answer.status_code == 500
    assert str(bank) not in answer.text
    (said,) = errors(caplog)
    assert "a call to /v1/models failed" in said
    assert str(bank) in said


# ------------------------------------------------------------------------------------------------------- the end


class Started:
    """``serve`` in a thread, on a Unix socket; signals are given to its server."""

    def __init__(self, bank: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **config: Any) -> None:
        self.path = folder / "s"
        servers: list[Any] = []

        class Kept(run._Server):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                servers.append(self)

        monkeypatch.setattr(run, "_Server", Kept)
        monkeypatch.delenv(TOKEN, raising=False)
        asked = ServeConfig(uds=str(self.path), device="cpu", **config)
        self.thread, self.result = in_thread(lambda: run.serve(bank, asked, SilentObserver(), lambda listening: None))
        until(lambda: listens(self.path) and servers and servers[0].started)
        self._server = servers[0]

    def signal(self, number: int = signal.SIGTERM) -> None:
        self._server.handle_exit(number, None)

    def post(self, body: Any) -> httpx.Response:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.path)), base_url=HOST, timeout=60) as client:
            return client.post(CLASSIFY, json=body)

    def ready(self) -> None:
        until(lambda: self._server._engine.ready)


@pytest.mark.parametrize(("grace", "signals"), [(0.1, 1), (60.0, 2)])
def test_what_has_not_ended_in_time_is_refused_in_openai_s_form(
    bank: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    blocked: Blocked,
    grace: float,
    signals: int,
) -> None:
    monkeypatch.setattr(run, "_LAST_SECOND", 0.01)
    server = Started(bank, tmp_path, monkeypatch, grace=grace)
    server.ready()
    asking, answers = in_thread(lambda: server.post(ASKED))
    assert blocked.working.wait(60)
    for _ in range(signals):
        server.signal(signal.SIGINT)
    server.thread.join(30)
    asking.join(30)
    assert not server.thread.is_alive()
    assert server.result == [None]
    (answer,) = answers
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
    assert answer.json()["error"]["message"] == "the server is stopping"
    assert not server.path.exists()
    assert "Traceback" not in capsys.readouterr().err


def test_log_handlers_of_others_stay_open(bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    class Own(logging.Handler):
        def close(self) -> None:
            closed.append(True)

    own = Own()
    server = Started(bank, tmp_path, monkeypatch)
    server.signal()
    server.thread.join(30)
    assert server.result == [None]
    assert closed == []
    assert own.level == logging.NOTSET  # it was there until now


def test_a_signal_while_the_model_is_loaded_ends_the_server(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def slowly(*args: Any) -> MixedAnswers:
        loading.set()
        assert go_on.wait(60)
        return MixedAnswers(*args)

    monkeypatch.setattr(engines, "MixedAnswers", slowly)
    monkeypatch.setattr(run, "_LAST_SECOND", 0.01)
    server = Started(bank, tmp_path, monkeypatch)
    assert loading.wait(60)
    assert server.post(ASKED).status_code == 503
    server.signal()
    server.thread.join(30)
    ended = not server.thread.is_alive()
    go_on.set()
    assert ended
    assert server.result == [None]


def test_a_start_that_cannot_be_told_ends_the_model_s_thread(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Engine] = []

    class Kept(Engine):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    def started(_: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(run, "Engine", Kept)
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(BrokenPipeError):
        run.serve(bank, ServeConfig(uds=str(tmp_path / "s"), device="cpu"), SilentObserver(), started)
    assert not made[0].ready
    until(lambda: not made[0]._thread.is_alive())
    assert not (tmp_path / "s").exists()


def test_a_body_that_is_still_on_its_way_is_refused_at_the_end(bank: Path) -> None:
    server, sent = Here(bank), []

    async def ask() -> None:
        waiting = asyncio.Event()

        async def receive() -> Any:
            waiting.set()
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost")]
        scope = {"type": "http", "method": "POST", "path": CLASSIFY, "headers": headers, "query_string": b""}
        call = asyncio.create_task(server.gate(scope, receive, send))
        await waiting.wait()
        server.gate.end()
        await call

    asyncio.run(ask())
    assert [message.get("status") for message in sent] == [503, None]
    assert b"the server is stopping" in sent[1]["body"]


def test_a_model_that_cannot_be_loaded_ends_the_server(lab: Lab, tmp_path: Path) -> None:
    path = Path(shutil.copytree(lab.bank("olora", 1), tmp_path / "bank"))
    with Here(path, max_resident="1B") as server:
        assert isinstance(server.engine.failure, ConfigError)
        assert server.get("/ready").status_code == 503
        question = {"model": "one", "messages": [{"role": "user", "content": "a"}]}
        assert server.post("/v1/chat/completions", question).status_code == 503
