"""The command line in one process: a runner, the library's use cases replaced by fakes, and a small real bank."""

from __future__ import annotations

import inspect
import json
import os
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lorabank_cli.main import main

import lorabank
from lorabank import api as real_api
from lorabank.bank.bank import Bank
from lorabank.core.records import (
    AdapterRecord,
    BaseModelRecord,
    CompositionRecord,
    DatasetRecord,
    EvaluationRecord,
    TaskRecord,
)


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


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in an empty folder, without settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LORABANK_")]:
        monkeypatch.delenv(name)
    for name in ("NO_COLOR", "COLUMNS", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Call ``lorabank WORDS...``."""

    def call(*words: str) -> Result:
        code = main(list(words))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@dataclass
class FakeApi:
    """Stands in for ``lorabank.api``: ``api[name] = what the use case gives, or raises, or a function``."""

    module: ModuleType
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __setitem__(self, name: str, answer: Any) -> None:
        signature = inspect.signature(getattr(real_api, name))

        def fake(*args: Any, **kwargs: Any) -> Any:
            # A call that the real function would refuse fails here too.
            arguments = dict(signature.bind(*args, **kwargs).arguments)
            self.calls.append((name, arguments))
            if isinstance(answer, BaseException):
                raise answer
            return answer(**arguments) if callable(answer) else answer

        setattr(self.module, name, fake)

    def called(self, name: str) -> dict[str, Any]:
        """The arguments of the last call of a use case."""
        return next(arguments for use_case, arguments in reversed(self.calls) if use_case == name)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    """The fake in the place of ``lorabank.api``; a use case that the test did not set up is not there."""
    fake = FakeApi(ModuleType("lorabank.api"))
    monkeypatch.setitem(sys.modules, "lorabank.api", fake.module)
    monkeypatch.setattr(lorabank, "api", fake.module)
    return fake


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make streams look like a terminal: ``terminal("stdout", "stdin")``."""

    def pretend(*streams: str) -> None:
        for name in streams:
            monkeypatch.setattr(getattr(sys, name), "isatty", lambda: True, raising=False)

    return pretend


BASE = BaseModelRecord(
    name="tiny",
    source="local",
    revision=None,
    config_hash="c" * 64,
    fingerprint="f" * 64,
    tokenizer_hash="7" * 64,
    dtype="float32",
    task_type="SEQ_CLS",
    hidden_size=32,
    parameters=1000,
    created_at="2030-01-02T03:04:05+00:00",
)


def adapter_record(task: str, digest: str = "a" * 64, **changes: Any) -> AdapterRecord:
    values: dict[str, Any] = {
        "digest": digest,
        "task": task,
        "r": 8,
        "lora_alpha": 32.0,
        "use_rslora": False,
        "target_modules": ("query", "value"),
        "strategy": "olora",
        "penalties": {"orthogonal": 0.5},
        "context": (),
        "seed": 0,
        "steps": 120,
        "wall_seconds": 3.0,
        "device": "cpu",
        "bytes": 1000,
        "head_digest": None,
        "files": {},
        "versions": {},
        "config": {},
        "metrics": {},
    }
    return AdapterRecord(**{**values, **changes})


@pytest.fixture
def records() -> Callable[..., AdapterRecord]:
    """Make an adapter record."""
    return adapter_record


@pytest.fixture
def bank(empty_folder: Path) -> Bank:
    """A bank at ``./bank`` with the tasks sentiment and spam, a score each and the composition both."""
    made = Bank.create(empty_folder / "bank", BASE)
    for position, (name, value) in enumerate((("sentiment", 0.875), ("spam", 0.9375)), 1):
        _add_task(made, name, float(position))
        made.add_evaluations([_score(name, position, value), _score(name, 2, 0.5, subject="both", key=f"both-{name}")])
    snapshot = made.snapshot()
    with made.reserve("compose", "both", {}) as operation:
        members = ("sentiment", "spam")
        digests = tuple(snapshot.adapter_of(name).digest for name in members)
        operation.commit_composition(
            CompositionRecord("both", "manual", members, digests, {"weights": [1.0, 1.0]}, {}), replace=False
        )
    return made


def _add_task(bank: Bank, name: str, weight: float) -> None:
    with bank.reserve("add-task", name, {}) as operation:
        rows = operation.stage_blob(f"rows of {name}".encode())
        digest = operation.stage_adapter(
            {
                "adapter_config.json": json.dumps(
                    {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["m"]}
                ).encode(),
                "adapter_model.safetensors": _safetensors(weight, -2.0),
            }
        )
        operation.commit_task(
            TaskRecord(name, 0, "SEQ_CLS", ("no", "yes"), "training"),
            adapter_record(name, digest),
            [
                DatasetRecord(name, "train", 400, ("text", "label"), "1" * 64, "train.jsonl"),
                DatasetRecord(name, "eval", 80, ("text", "label"), "2" * 64, "train.jsonl", blob=rows),
            ],
        )


def _score(task: str, stage: int, value: float, subject: str = "as-trained", key: str = "") -> EvaluationRecord:
    key = key or f"key-{task}"
    return EvaluationRecord(key, subject, stage, task, "accuracy", value, 80, 0.7, 0.98, "given", {}, {})


def _safetensors(*values: float) -> bytes:
    """A rank-1 adapter whose A and B hold the same values, put together by hand from the format's description."""
    count, prefix = len(values), "base_model.model.m"
    header = {
        f"{prefix}.lora_A.weight": {"dtype": "F32", "shape": [1, count], "data_offsets": [0, 4 * count]},
        f"{prefix}.lora_B.weight": {"dtype": "F32", "shape": [count, 1], "data_offsets": [4 * count, 8 * count]},
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + 2 * struct.pack(f"<{count}f", *values)
