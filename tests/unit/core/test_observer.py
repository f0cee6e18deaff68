"""Bars in a notebook, nothing anywhere else."""

from __future__ import annotations

import inspect
import io
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from lorabank import api
from lorabank.core.observer import BARS, NotebookObserver, Observer
from lorabank.workflows.session import Session


class Tqdm:
    """Stands in for ``tqdm.auto.tqdm``."""

    made: list[Tqdm]
    lines: list[str]

    def __init__(self, total: int, desc: str) -> None:
        self.total, self.desc, self.n, self.told, self.closed = total, desc, 0, "", False
        self.made.append(self)

    def update(self, count: int) -> None:
        self.n += count

    def set_postfix_str(self, told: str, refresh: bool) -> None:
        self.told = told

    def close(self) -> None:
        self.closed = True

    @classmethod
    def write(cls, line: str, file: Any) -> None:
        assert file is sys.stderr
        cls.lines.append(line)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> type[Tqdm]:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=object))
    monkeypatch.setitem(sys.modules, "tqdm.auto", SimpleNamespace(tqdm=Tqdm))
    Tqdm.made, Tqdm.lines = [], []
    return Tqdm


def work(observer: Observer) -> None:
    observer.start("training \x1b[31mspam", 4)
    observer.advance(1, {"loss": 0.51239})
    observer.notice("a label is rare")
    observer.advance(3, {"loss": 0.25, "penalty": 2.0})
    observer.finish()


def test_a_bar_for_each_job_and_a_line_for_each_notice(notebook) -> None:
    observer = NotebookObserver()
    assert isinstance(observer, Observer)
    work(observer)
    (bar,) = notebook.made
    assert (bar.total, bar.n, bar.told, bar.closed) == (4, 3, "loss 0.25  penalty 2", True)
    assert "\x1b" not in bar.desc
    assert notebook.lines == ["a label is rare"]
    observer.start("scoring", 2)
    observer.start("scoring again", 2)  # a job that was left by an exception has no end
    assert [bar.closed for bar in notebook.made] == [True, True, False]
    observer.finish()


def test_threads_have_bars_of_their_own(notebook) -> None:
    observer = NotebookObserver()
    observer.start("here", 2)
    other = threading.Thread(target=work, args=(observer,))
    other.start()
    other.join()
    observer.advance(2, {})
    assert [(bar.n, bar.closed) for bar in notebook.made] == [(2, False), (3, True)]
    observer.finish()


def test_outside_of_ipython_it_shows_nothing(notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (None, SimpleNamespace(get_ipython=lambda: None)):  # imported by a library, and no shell
        monkeypatch.setitem(sys.modules, "IPython", module)
        work(NotebookObserver())
    monkeypatch.delitem(sys.modules, "IPython")
    work(NotebookObserver())
    assert (notebook.made, notebook.lines) == ([], [])


def test_tqdm_takes_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=object))
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    work(NotebookObserver())
    assert "3/4" in stream.getvalue()
    assert "penalty 2" in stream.getvalue()
    assert "a label is rare\n" in stream.getvalue()


@pytest.mark.parametrize("holder", [api, Session])
def test_every_call_that_is_given_no_observer_has_it(holder: Any) -> None:
    functions = [one for _, one in inspect.getmembers(holder, inspect.isfunction)]
    defaults = {
        parameter.default
        for function in functions
        for name, parameter in inspect.signature(function).parameters.items()
        if name == "observer"
    }
    assert defaults == {BARS}
