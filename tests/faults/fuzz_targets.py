"""What is fed with bytes that nobody meant: each target takes them and may raise lorabank's own errors only."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import openpyxl
import torch
from safetensors.torch import save

from lorabank.bank.bank import Bank
from lorabank.bank.objects.layout import check_name
from lorabank.bank.objects.safetensors import check_tensor_bytes
from lorabank.core.config import TrainConfig
from lorabank.core.records import BaseModelRecord
from lorabank.exchange.config_fields import parse
from lorabank.exchange.untrusted_adapter import read_foreign
from lorabank.models.bases.open_base import OpenBase
from lorabank.workflows.task_data import load_data
from tests.faults.corpus.case import PREFIX

BASE = BaseModelRecord(
    name="tiny", source="local", revision=None, config_hash="c" * 64, fingerprint="f" * 64, tokenizer_hash="7" * 64,
    dtype="float32", task_type="SEQ_CLS", hidden_size=4, parameters=100,
)  # fmt: skip
MODULE = f"{PREFIX}layer.query"
GOOD_CONFIG = {
    "peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "tiny", "r": 2, "lora_alpha": 4,
    "target_modules": ["query"], "modules_to_save": ["classifier"], "bias": "none", "rank_pattern": {"query": 2},
    "alpha_pattern": {"layer.query": 4}, "lora_dropout": 0.1, "use_rslora": False, "revision": None,
}  # fmt: skip


@cache
def good_weights() -> bytes:
    """A small adapter, valid."""
    torch.manual_seed(0)
    tensors = {f"{MODULE}.lora_A.weight": torch.randn(2, 4), f"{MODULE}.lora_B.weight": torch.randn(4, 2)}
    return save(tensors | {f"{PREFIX}classifier.bias": torch.zeros(2)}, metadata={"format": "pt"})


@cache
def _place() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """A folder of this process, and an empty bank in it."""
    folder = tempfile.TemporaryDirectory(prefix="lorabank-fuzz-")
    Bank.create(Path(folder.name) / "bank", BASE)
    return folder, Path(folder.name)


def header(data: bytes) -> None:
    """A safetensors file."""
    check_tensor_bytes(data, "adapter_model.safetensors")


def config(data: bytes) -> None:
    """An ``adapter_config.json`` beside good weights."""
    read_foreign(parse(data), good_weights(), ignore_unknown=len(data) % 2 == 0)


def rows(data: bytes, suffix: str = ".jsonl") -> None:
    """A file to train on."""
    path = _place()[1] / f"rows{suffix}"
    path.write_bytes(data)
    load_data(TrainConfig(data=str(path), skip_bad=len(data) % 2 == 0), OpenBase(BASE))


@cache
def good_workbook() -> bytes:
    """A small Excel workbook."""
    book, file = openpyxl.Workbook(), io.BytesIO()
    for row in (("Text", "label"), *((f"text {number}", number % 2) for number in range(8))):
        book.active.append(row)
    book.save(file)
    return file.getvalue()


def name(data: bytes) -> None:
    """The name of a task."""
    accepted = check_name(data.decode("utf-8", "surrogateescape"))
    assert accepted.isascii(), accepted
    assert "/" not in accepted, accepted
    assert 1 <= len(accepted) <= 64, accepted


def manifest(data: bytes) -> None:
    """The ``bank.json`` of a bank."""
    path = _place()[1] / "bank"
    (path / "bank.json").unlink()
    (path / "bank.json").write_bytes(data)
    Bank.open(path).snapshot()


def clear() -> None:
    """Drop the folder."""
    if _place.cache_info().currsize:
        _place()[0].cleanup()
        shutil.rmtree(_place()[1], ignore_errors=True)
        _place.cache_clear()


_CSV = b'text,label\n"a ""b""\nc",x\nd,y\ne,x\nf,y\n'
TARGETS: dict[str, Callable[[bytes], None]] = {
    "header": header, "config": config, "rows": rows, "name": name, "manifest": manifest,
    "csv": partial(rows, suffix=".csv"), "packed": partial(rows, suffix=".csv.gz"),
    "list": partial(rows, suffix=".json"), "workbook": partial(rows, suffix=".xlsx"),
}  # fmt: skip
SEEDS: dict[str, tuple[bytes, ...]] = {
    "header": (good_weights(),),
    "config": (json.dumps(GOOD_CONFIG).encode(), json.dumps({**GOOD_CONFIG, "r_sum": 2}).encode()),
    "rows": (
        b'{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n' * 3,
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n',
        b'{"prompt": "a", "completion": "b"}\n{"instruction": "a", "input": "", "output": "b"}\n',
    ),
    "csv": (_CSV, _CSV.replace(b",", b";"), _CSV.decode().encode("utf-16"), b"sep=\t\n" + _CSV.replace(b",", b"\t")),
    "packed": (gzip.compress(_CSV),),
    "list": (b'[{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "c", "label": "x"}]',),
    "workbook": (good_workbook(),),
    "name": (b"spam", b"default", b"con", b"a..b"),
    "manifest": (b'{"format": 1, "id": "00", "created_with": "0.1.0"}',),
}
"""What mutations begin with."""
