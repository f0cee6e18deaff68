"""``python -m benchmarks.before_after``: what a small instruct model answers before and after it learnt 60 rows.

The rows are questions with two sentences in answer, written for this: ``medical/en.jsonl`` and ``medical/zh.jsonl``.
The bare base is asked each question in its chat template; ``add-task`` learns 48 of the rows, with its defaults and 20
epochs, and the task is asked again. It makes the tables of docs/language-models.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from lorabank import GenerateConfig, InitConfig, TrainConfig, api
from lorabank.bank.bank import Bank
from lorabank.data.formats.parquet import from_parquet
from lorabank.evaluation.text_metrics import rouge_l, token_f1

ROWS = Path(__file__).parent / "medical"
SHOWN = 3
TASK = "medical"
GROUPS = ("all", "learnt", "held out")


def answers(bank: Path, questions: Sequence[str], task: str, tokens: int) -> dict[str, str]:
    """Question to what the task, or with ``none`` the bare base, says."""
    said = api.generate(bank, questions, GenerateConfig(task=task, max_new_tokens=tokens))
    return {one.text: one.label for one in said}


def held_out(bank: Path, questions: Sequence[str]) -> set[str]:
    """The questions among the task's evaluation rows."""
    opened = Bank.open(bank)
    dataset = opened.snapshot().dataset(TASK, "eval")
    assert dataset is not None
    assert dataset.blob is not None
    return {*from_parquet(opened.read_blob(dataset.blob)).texts} & {*questions}


def score(said: Mapping[str, str], rows: Mapping[str, str], asked: Sequence[str]) -> tuple[float, float]:
    """Mean token F1 and ROUGE-L of the answers to some questions."""
    f1, rouge = (fmean(metric(said[one], rows[one]) for one in asked) for metric in (token_f1, rouge_l))
    return f1, rouge


def main(words: Sequence[str]) -> int:
    """Print the table and some answers side by side."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.before_after", description=__doc__)
    parser.add_argument("--language", choices=("en", "zh"), default="en")
    parser.add_argument("--base", help="default: SmolLM2-135M-Instruct")
    parser.add_argument("--gguf-file")
    parser.add_argument("--epochs", type=float, default=20.0)
    parser.add_argument("--max-new-tokens", type=int, default=60)
    given = parser.parse_args(words)
    path = ROWS / f"{given.language}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = {row["instruction"]: row["output"] for row in map(json.loads, lines)}
    with tempfile.TemporaryDirectory() as folder:
        bank = Path(folder) / "bank"
        api.init_bank(bank, InitConfig(base=given.base, gguf_file=given.gguf_file, task_type="CAUSAL_LM"))
        before = answers(bank, [*rows], "none", given.max_new_tokens)
        api.add_task(bank, TASK, TrainConfig(data=str(path), epochs=given.epochs))
        after = answers(bank, [*rows], TASK, given.max_new_tokens)
        held = held_out(bank, [*rows])
    asked = {"all": [*rows], "learnt": [one for one in rows if one not in held], "held out": sorted(held)}
    print("| rows | token F1 before | after | ROUGE-L before | after |\n| --- | ---: | ---: | ---: | ---: |")
    for group in GROUPS:
        (f1, rouge), (f1_after, rouge_after) = (score(said, rows, asked[group]) for said in (before, after))
        print(f"| {group}, {len(asked[group])} | {f1:.4f} | {f1_after:.4f} | {rouge:.4f} | {rouge_after:.4f} |")
    for question in [*asked["learnt"][:SHOWN], *asked["held out"][:SHOWN]]:
        print(f"\n{question}\n  wanted  {rows[question]}\n  before  {before[question]}\n  after   {after[question]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
