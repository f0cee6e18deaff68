"""The command line in one process, with the library's use cases replaced by fakes that record their calls."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lorabank_cli.main import main

import lorabank


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


Runner = Callable[..., Result]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in an empty folder, without settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LORABANK_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    """Call ``lorabank WORDS...``."""

    def call(*words: str) -> Result:
        code = main(list(words))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@dataclass
class FakeApi:
    """Stands in for ``lorabank.api``: ``returns[name]`` is what a use case gives, or the exception it raises."""

    module: ModuleType
    returns: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __setitem__(self, name: str, result: Any) -> None:
        self.returns[name] = result
        real = getattr(lorabank.api, name)

        def fake(*args: Any, **kwargs: Any) -> Any:
            # A call that the real function would refuse must fail here too.
            bound = inspect.signature(real).bind(*args, **kwargs)
            self.calls.append((name, dict(bound.arguments)))
            answer = self.returns[name]
            if isinstance(answer, BaseException):
                raise answer
            return answer(**bound.arguments) if callable(answer) else answer

        setattr(self.module, name, fake)

    def call(self, name: str) -> dict[str, Any]:
        """The arguments of the last call of a use case."""
        return next(arguments for called, arguments in reversed(self.calls) if called == name)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    """The fake in the place of ``lorabank.api``; a use case that was not set up is not there."""
    import lorabank.api

    fake = FakeApi(ModuleType("lorabank.api"))
    monkeypatch.setitem(sys.modules, "lorabank.api", fake.module)
    monkeypatch.setattr(lorabank, "api", fake.module)
    return fake
