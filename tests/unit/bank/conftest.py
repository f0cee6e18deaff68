"""What the tests of the bank make banks of: tiny files, written by hand from the formats' descriptions."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorabank.bank.bank import Bank
from lorabank.core.records import (
    AdapterRecord,
    BaseModelRecord,
    CompositionRecord,
    DatasetRecord,
    EvaluationRecord,
    TaskRecord,
)

MOMENT = "2030-01-02T03:04:05+00:00"


class Kit:
    """Records and files to fill a bank with."""

    base = BaseModelRecord(
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
        created_at=MOMENT,
    )
    adapter = AdapterRecord(
        digest="",
        task="",
        r=8,
        lora_alpha=32,
        use_rslora=False,
        target_modules=("encoder.query", "encoder.value"),
        strategy="olora",
        penalties={"orthogonal": 0.5},
        context=(),
        seed=7,
        steps=120,
        wall_seconds=3,
        device="cpu",
        bytes=0,
        head_digest="e" * 64,
        files={},
        versions={"torch": "2.13"},
        config={"epochs": 5.0, "labels": ["no", "yes"]},
        metrics={"loss": [0.7, 0.1]},
        created_at=MOMENT,
    )
    config = json.dumps({"peft_type": "LORA", "r": 8}).encode()

    @staticmethod
    def safetensors(*values: float, name: str = "lora_A") -> bytes:
        """A file with one F32 vector."""
        header = {name: {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, 4 * len(values)]}}
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + struct.pack(f"<{len(values)}f", *values)

    def files(self, *weights: float) -> dict[str, bytes]:
        """An adapter folder."""
        return {"adapter_config.json": self.config, "adapter_model.safetensors": self.safetensors(*weights)}

    def add_task(self, bank: Bank, name: str, *, weight: float = 1.0, context: tuple[str, ...] = ()) -> TaskRecord:
        """A task with an adapter of one weight and one object, a statistics blob and two data sets."""
        with bank.reserve("add-task", name, {"seed": 7}) as operation:
            return self.commit_task(operation, name, weight=weight, context=context)

    def replace_task(self, bank: Bank, name: str, *, weight: float = 1.0) -> TaskRecord:
        """A new version of a task."""
        config = {"replaces": bank.snapshot().position_of(name)}
        with bank.reserve("add-task", name, config) as operation:
            return self.commit_task(operation, name, weight=weight)

    def commit_task(
        self, operation: Any, name: str, *, weight: float = 1.0, context: tuple[str, ...] = ()
    ) -> TaskRecord:
        statistics = operation.stage_blob(self.safetensors(weight, 0.5, name="centroids"))
        rows = operation.stage_blob(f"PAR1 rows of {name}".encode())
        inputs = operation.stage_blob(self.safetensors(weight, 0.75, name="inputs"))
        digest = operation.stage_adapter(self.files(weight, -2.0))
        stored: TaskRecord = operation.commit_task(
            TaskRecord(name, 0, "SEQ_CLS", ("no", "yes"), "training", statistics=statistics),
            self.adapter._replace(digest=digest, task=name, context=context, objects={"inputs": inputs}),
            [
                DatasetRecord(name, "train", 400, ("text", "label"), "1" * 64, "train.jsonl", rows_dropped=2),
                DatasetRecord(name, "eval", 80, ("text", "label"), "2" * 64, "train.jsonl", blob=rows),
            ],
        )
        return stored

    @staticmethod
    def compose(
        bank: Bank, name: str, tasks: tuple[str, ...], *, content: bytes | None = None, replace: bool = False
    ) -> CompositionRecord:
        """A manual composition, with one object when there is content for it."""
        snapshot = bank.snapshot()
        with bank.reserve("compose", name, {"replace": replace}) as operation:
            objects = {"selector": operation.stage_blob(content)} if content else {}
            digests = tuple(snapshot.adapter_of(task).digest for task in tasks)
            record = CompositionRecord(name, "manual", tasks, digests, {"weights": [1.0] * len(tasks)}, objects)
            return operation.commit_composition(record, replace=replace)

    @staticmethod
    def evaluation(key: str = "k1", **changes: Any) -> EvaluationRecord:
        """One cell of a matrix."""
        record = EvaluationRecord(
            key=key,
            subject="as-trained",
            stage=2,
            task="spam",
            metric="accuracy",
            value=0.875,
            n=80,
            low=0.78,
            high=0.93,
            task_id="given",
            settings={"batch_size": 64},
            detail={"seconds": 0.5},
            created_at=MOMENT,
        )
        return record._replace(**changes)

    @staticmethod
    def tree(folder: Path) -> dict[str, bytes]:
        """Every file below a folder with its content."""
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    @staticmethod
    def overwrite(path: Path, content: bytes) -> None:
        """Change a stored file as a careless user or a failing disk would."""
        path.chmod(0o600)
        path.write_bytes(content)


@pytest.fixture
def kit() -> Kit:
    return Kit()


@pytest.fixture(scope="session")
def empty_bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Bank.create(tmp_path_factory.mktemp("empty") / "bank", Kit.base).path


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a disk in memory where there is one: what a killed process leaves is the same, and syncing takes no time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as path:
        yield Path(path)


@pytest.fixture
def bank(folder: Path, empty_bank: Path) -> Bank:
    """An empty bank of its own; a copy, because running the migrations takes most of the time."""
    return Bank.open(shutil.copytree(empty_bank, folder / "bank"))
