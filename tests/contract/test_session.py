"""A session: what stays in memory, what it sees of others' changes, and how it is refused."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import lorabank
from lorabank import api
from lorabank.core.config import ComposeConfig, EvalConfig, GenerateConfig, PredictConfig
from lorabank.core.errors import BusyError, ConfigError, NotFoundError
from lorabank.core.observer import SilentObserver
from tests.contract.test_loads import counts, forget

TEXTS = ("a b c", "x y z", "a z")
ONE = PredictConfig(task="one", device="cpu")

__all__ = ["counts"]


def test_a_loop_of_predictions_loads_and_reads_nothing_after_the_first(
    copy: Any, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives what single calls give, for a task, a routed composition and one that needs a head found."""
    bank = copy("olora", 2)
    for mode in ("prototype", "manual"):
        api.compose(bank, ComposeConfig(mode=mode, set=("kmeans.clusters_per_task=2",), device="cpu"))
    for config in (ONE, PredictConfig(composition="prototype"), PredictConfig(composition="manual")):
        expected = [api.predict(bank, [text], config) for text in TEXTS[:2]]
        with lorabank.open(bank) as session:
            session.predict(TEXTS, config)
            counts.clear()
            with monkeypatch.context() as patched:
                patched.setattr(lorabank.Bank, "read_blob", None)
                patched.setattr(lorabank.Bank, "verified_adapter", None)
                patched.setattr(lorabank.Bank, "snapshot", None)
                found = [session.predict([TEXTS[i % 2]], config) for i in range(20)]
            assert not counts
        assert found[:2] == expected
        assert found[18:] == expected


def test_a_session_loads_once_for_everything(lab: Any, copy: Any, counts: Counter[str]) -> None:
    bank = copy("olora", 1)
    counts.clear()
    forget()
    with lorabank.open(bank) as session:
        session.predict(TEXTS, ONE)
        learnt = session.add_task("two", lab.settings("two"))
        session.compose(ComposeConfig(mode="prototype", set=("clusters_per_task=2",), device="cpu"))
        (report,) = session.evaluate(EvalConfig(compositions=("prototype",), device="cpu"))
        routed = session.predict(TEXTS)
    assert counts == {"loads": 1, "hashes": 1, "tokenizers": 1}
    assert api.evaluate(bank, EvalConfig(compositions=("prototype",), device="cpu", batch_size=63))[0].values == (
        report.values
    )
    assert api.predict(bank, TEXTS) == routed
    assert learnt.task.position == 2


def test_a_session_sees_what_others_change_and_keeps_the_base(lab: Any, copy: Any, counts: Counter[str]) -> None:
    bank = copy("olora", 1)
    with lorabank.open(bank) as session:
        session.predict(TEXTS, ONE)
        with pytest.raises(NotFoundError, match="no task 'two'"):
            session.predict(TEXTS, PredictConfig(task="two"))
        lab.add(bank, "two")
        counts.clear()
        assert [task.name for task in session.refresh().tasks] == ["one", "two"]
        found = session.predict(TEXTS, PredictConfig(task="two"))
        assert not counts
        assert found == api.predict(bank, TEXTS, PredictConfig(task="two"))
        api.rename(bank, "two", "other")
        assert session.predict(TEXTS, PredictConfig(task="other"))[0].label == found[0].label
        api.remove(bank, "other")
        with pytest.raises(NotFoundError, match="was removed"):
            session.predict(TEXTS, PredictConfig(task="other"))


def test_a_language_model_generates_in_a_session(make_lab: Any, counts: Counter[str]) -> None:
    bank = make_lab("llama").bank("olora", 1)
    config = GenerateConfig(task="one", max_new_tokens=3, device="cpu")
    with lorabank.open(bank) as session:
        bare = session.generate(TEXTS, GenerateConfig(task="none", max_new_tokens=3, device="cpu"))
        counts.clear()
        assert session.generate(TEXTS, config) == session.generate(TEXTS, config)
        assert not counts
    assert api.generate(bank, TEXTS, GenerateConfig(task="none", max_new_tokens=3, device="cpu")) == bare


def test_no_bank_is_no_session(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no bank"):
        lorabank.open(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"api\.open: path is the int 5, not a path"):
        lorabank.open(5)  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()


def test_arguments_of_methods_are_checked_by_name(copy: Any) -> None:
    with lorabank.open(copy("olora", 1)) as session:
        with pytest.raises(ConfigError) as caught:
            session.predict("one")
        assert caught.value.message == "Session.predict: texts is the str 'one', not a list of strings or None"
        with pytest.raises(ConfigError, match="batch_size = 0: "):
            session.predict(TEXTS, PredictConfig(task="one", batch_size=0))
        with pytest.raises(ConfigError, match="batch_size = True: "):
            session.predict(TEXTS, PredictConfig(task="one", batch_size=True))


def test_a_closed_session_refuses_and_holds_no_model(copy: Any) -> None:
    session = lorabank.open(copy("olora", 1))
    session.predict(TEXTS, ONE)
    held = weakref.ref(session._opened.base.load().model.get_input_embeddings().weight)
    assert held() is not None
    session.close()
    session.close()
    gc.collect()
    assert held() is None
    for call in (session.refresh, lambda: session.predict(TEXTS), lambda: session.evaluate(EvalConfig())):
        with pytest.raises(ConfigError, match=r"^the session of .* is closed$"):
            call()


def test_closed_by_another_thread_a_call_ends_and_lets_the_models_go(copy: Any) -> None:
    session = lorabank.open(copy("olora", 1))

    class Closes(SilentObserver):
        def start(self, what: str, total: int) -> None:
            thread = threading.Thread(target=session.close)
            thread.start()
            thread.join()
            assert session._opened._runtime is not None  # the call goes on with what it has

    (report,) = session.evaluate(EvalConfig(batch_size=3, device="cpu"), Closes())
    assert report.computed == 1
    assert (session._opened._runtime, session._opened._base) == (None, None)
    with pytest.raises(ConfigError, match="is closed"):
        session.refresh()


def test_a_fork_is_told_to_open_its_own(copy: Any) -> None:
    session = lorabank.open(copy("olora", 1))
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            session.refresh()
        except ConfigError as error:
            os.write(write, error.message.encode())
        finally:
            os._exit(0)
    os.close(write)
    told = os.read(read, 4096).decode()
    os.close(read)
    os.waitpid(child, 0)
    assert told.endswith(f"was opened in process {os.getpid()}, this is process {child}")


def test_a_second_call_at_the_same_time_is_refused_and_harms_nothing(copy: Any) -> None:
    """From another thread, and from an observer in the middle of a call; one after the other, threads are free."""
    session = lorabank.open(copy("olora", 1))
    errors: list[BusyError] = []

    def ask() -> None:
        try:
            session.predict(TEXTS, ONE)
        except BusyError as error:
            errors.append(error)

    class Asks(SilentObserver):
        def start(self, what: str, total: int) -> None:
            ask()
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()

    session.evaluate(EvalConfig(batch_size=3, device="cpu"), Asks())
    assert [
        error.message.endswith("in the middle of another call, and handles one at a time") for error in errors
    ] == ([True] * 2)
    later = threading.Thread(target=ask)
    later.start()
    later.join()
    assert len(errors) == 2
