"""Adapters from PEFT folders into one stack, against PEFT's ``load_adapter``; late ones against early ones."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel

from benchmarks.harness import Result
from benchmarks.models import ALPHA, RANK, minilm, query_and_value, random_stack
from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.exchange.peft_folder import adapter_files, read_stack

ADAPTERS, FIRST = 100, 33
ROUNDS = 5
BAR, GROWTH_BAR = 0.01, 1.2


def measure() -> list[Result]:
    """All adapters at once by both; ours also one folder at a time, early and late."""
    with tempfile.TemporaryDirectory() as place:
        folders = _write(Path(place))
        ours = statistics.median(_seconds(lambda: _read(folders)) for _ in range(ROUNDS))
        few = dict(list(folders.items())[:FIRST])
        growth = [
            (_seconds(lambda: _read(folders)) - _seconds(lambda: _read(few)))
            / (ADAPTERS - len(few))
            / (_seconds(lambda: _read(few)) / len(few))
            for _ in range(ROUNDS)
        ]
        theirs = _seconds(lambda: _load_peft(folders))
        stack = _read(folders)
        copied = statistics.median(_seconds(lambda: _copy(stack)) for _ in range(ROUNDS))
    detail = {"seconds": ours, "peft_seconds": theirs, "copy_seconds": copied, "adapters": ADAPTERS}
    what = f"{ADAPTERS} adapters of MiniLM (query, value) from PEFT folders"
    return [
        Result(
            "loading", f"{what}, against PEFT's load_adapter", ours / theirs, BAR, "x", detail, floor=copied / theirs
        ),
        Result(
            "loading",
            f"{what}, one of the last {ADAPTERS - FIRST} against one of the first {FIRST}",
            statistics.median(growth),
            GROWTH_BAR,
            "x",
            {},
        ),
    ]


def _write(place: Path) -> dict[str, Path]:
    model = minilm()
    stack = random_stack(model, query_and_value(model), ADAPTERS)
    folders = {}
    for k, name in enumerate(stack.names):
        rows = slice(k * RANK, (k + 1) * RANK)
        A = {module: factors.A[rows] for module, factors in stack.modules.items()}
        B = {module: factors.B[:, rows] for module, factors in stack.modules.items()}
        files = adapter_files(
            LoraFactors(A, B, dict.fromkeys(A, ALPHA / RANK)), {}, base_model="base", task_type="FEATURE_EXTRACTION",
            r=RANK, lora_alpha=ALPHA, use_rslora=False, head_modules=(),
        )  # fmt: skip
        folders[name] = place / name
        folders[name].mkdir()
        for file, data in files.items():
            (folders[name] / file).write_bytes(data)
    return folders


def _read(folders: dict[str, Path]) -> AdapterStack:
    return read_stack(folders, device="cpu", dtype=torch.float32)


def _copy(stack: AdapterStack) -> object:
    """The bytes alone, from memory to memory."""
    return [(factors.A.clone(), factors.B.clone()) for factors in stack.modules.values()]


def _load_peft(folders: dict[str, Path]) -> object:
    (first, folder), *others = folders.items()
    model = PeftModel.from_pretrained(minilm(), folder, adapter_name=first)
    for name, folder in others:
        model.load_adapter(folder, adapter_name=name)
    return model


def _seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start
