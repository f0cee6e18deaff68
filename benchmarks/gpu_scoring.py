"""Four labels behind each text through `Session.predict` and `Session.evaluate`, against one plain pass a label.

The plain passes get the same rows in each batch, and pad on the right.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.device import clock, saved_base, sizes
from benchmarks.harness import Result, compare, from_comparison
from benchmarks.random_base import texts
from benchmarks.scoring import plain_scores
from lorabank import api
from lorabank.core.config import EvalConfig, InitConfig, PredictConfig, TrainConfig
from lorabank.core.observer import SilentObserver
from lorabank.models.answering import likelihood
from lorabank.models.tasks.padding import prompt_batches
from lorabank.workflows.session import Session

BAR = 0.30
LABELS = ("w1", "w2", "w3", "w4 w5 w6")
WORDS, TRAINED = 60, 32
BATCH_SIZE = 64


def measure(device: str, shape: str, folder: Path) -> list[Result]:
    """A task's texts labelled again and again, and its cell after another task; nothing for an encoder-decoder."""
    work, base = sizes(shape), saved_base(shape, device, folder)
    if base.record.task_type != "CAUSAL_LM":
        return []
    asked = texts(work.texts, WORDS)
    with tempfile.TemporaryDirectory() as place, _bank(Path(place) / "bank", folder / shape) as session:
        learnt = _rows(Path(place) / "learnt.jsonl", texts(TRAINED, WORDS, seed=2))
        held = _rows(Path(place) / "held.jsonl", asked)
        settings = TrainConfig(
            data=str(learnt),
            eval_data=str(held),
            set=("prompt_template={text}",),
            epochs=1.0,
            device=device,
            keep_samples=0,
        )
        for task in ("first", "second"):
            session.add_task(task, settings, observer=SilentObserver())
        model = base.load(device=device, dtype="auto").model
        prompts = base.tokenizer(asked)["input_ids"]
        labels = [base.tokenizer(label, add_special_tokens=False)["input_ids"] + [2] for label in LABELS]
        budget = BATCH_SIZE * 256 if likelihood.by_tokens(model) else None
        batches = prompt_batches(model, [len(prompt) for prompt in prompts], BATCH_SIZE, tokens=budget, more=8)
        predict = PredictConfig(task="first", device=device, batch_size=BATCH_SIZE)
        forms: dict[str, Any] = {
            "plain": lambda: plain_scores(model, prompts, labels, batches=batches),
            "predict": lambda: session.predict(asked, predict),
        }
        tick = clock(device)
        seen = compare(forms, baseline="plain", rounds=work.rounds, warmup=1, clock=tick)["predict"]
        start = tick()
        session.evaluate(EvalConfig(device=device, batch_size=BATCH_SIZE, forgetting_matrix=True))
        cell = tick() - start
    what = f"{len(LABELS)} labels, {shape}, {len(asked)} texts, against one plain pass each"
    of_matrix = {"seconds": cell, "baseline_seconds": seen.baseline_seconds}
    return [
        replace(from_comparison("gpu_scoring", f"Session.predict of {what}", seen, BAR)),
        Result(
            "gpu_scoring",
            f"Session.evaluate of the one missing cell, {what}",
            cell / seen.baseline_seconds,
            BAR,
            "x",
            of_matrix,
        ),
    ]


def _bank(path: Path, base: Path) -> Session:
    api.init_bank(path, InitConfig(base=str(base)))
    return api.open(path)


def _rows(path: Path, asked: list[str]) -> Path:
    rows = [{"text": text, "label": LABELS[k % len(LABELS)]} for k, text in enumerate(asked)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
