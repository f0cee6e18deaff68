"""``python -m benchmarks.sequences``: the table of docs/results.md, on the demo's four tasks.

Every strategy learns sentiment, spam, products and tweets in this order, once per seed, each in a bank of its own;
compositions are fitted on the `olora` and `isolated` banks and measured over the whole matrix. A run that is
interrupted resumes where it stopped: finished tasks, compositions and cells are in the banks.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two processes side by side beat two threads

import argparse
import json
import math
import random
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import environment, write_whole

STRATEGIES = ("seqlora", "inclora", "olora", "isolated")
COMPOSED = ("olora", "isolated")
"""Strategies whose adapters are composed: one that holds them apart, and one that knows nothing of the others."""
METRICS = ("average_accuracy", "learning_accuracy", "backward_transfer", "forgetting", "oracle", "routing_accuracy")


@dataclass(frozen=True)
class Told:
    """Prints notices, and no losses."""

    def notice(self, message: str) -> None:
        """Print it."""
        print(message, file=sys.stderr, flush=True)

    def start(self, what: str, total: int) -> None:
        """Say nothing."""

    def advance(self, done: int, values: Any) -> None:
        """Say nothing."""

    def finish(self) -> None:
        """Say nothing."""


def prepare(folder: Path, dev_rows: int) -> None:
    """The demo's tasks as files; with ``dev_rows``, that many rows of each training file take the test file's place.

    Settings are chosen on such rows, never on the test files.
    """
    from lorabank.demo.run import TASKS, copy_data

    copy_data(folder)
    if dev_rows:
        for task in TASKS:
            train = folder / task / "train.jsonl"
            lines = train.read_text(encoding="utf-8").splitlines(keepends=True)
            random.Random(0).shuffle(lines)
            (folder / task / "test.jsonl").write_text("".join(lines[:dev_rows]), encoding="utf-8")
            train.write_text("".join(lines[dev_rows:]), encoding="utf-8")


def run(folder: Path, strategy: str, seed: int, changed: dict[str, Any], composed: bool) -> list[dict[str, Any]]:
    """One sequence with its compositions: the rows of the demo's table."""
    from lorabank.core.config import ComposeConfig
    from lorabank.demo.run import COMPOSITIONS, measure, table_row, train_sequence

    observer, bank = Told(), folder / f"{strategy}-{seed}"
    train_sequence(bank, folder / "data", strategy, seed=seed, changed=changed, observer=observer)
    kmeans = ComposeConfig(mode="prototype", name="prototype-kmeans", router="kmeans")
    compositions = (*COMPOSITIONS, kmeans) if composed and strategy in COMPOSED else ()
    reports = measure(bank, compositions, seed=seed, observer=observer)
    return [{"seed": seed, **table_row(strategy, report), "values": report.values} for report in reports]


def table(rows: list[dict[str, Any]]) -> str:
    """Mean over the seeds, and the sample standard deviation, as Markdown."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["strategy"], row["answers"], row["task_id"]].append(row)
    lines = [
        "| trained by | answered by | task id | average accuracy | learning accuracy | backward transfer | forgetting "
        "| oracle | routed right |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (strategy, answers, task_id), group in groups.items():
        cells = " | ".join(_cell([row[metric] for row in group]) for metric in METRICS)
        lines.append(f"| {strategy} | {answers} | {task_id} | {cells} |")
    return "\n".join(lines)


def _cell(values: list[float | None]) -> str:
    there = [value for value in values if value is not None and not math.isnan(value)]
    if not there:
        return ""
    spread = f" ± {statistics.stdev(there):.3f}" if len(there) > 1 else ""
    return f"{statistics.mean(there):.3f}{spread}"


def _number(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def main() -> int:
    """Run what is asked for, or gather finished parts into one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequences", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="FIELD=VALUE", help="settings unlike the demo's: epochs=4 r=16"
    )
    parser.add_argument("--dev", type=int, default=0, metavar="ROWS", help="score on rows cut from the training files")
    parser.add_argument("--no-compose", action="store_true", help="the strategies only")
    parser.add_argument("--folder", type=Path, default=Path("sequences"), help="banks and data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows here, and the table to FILE.md")
    arguments = parser.parse_args()
    changed = {name: _number(value) for name, value in (pair.split("=", 1) for pair in arguments.set)}
    prepare(arguments.folder / "data", arguments.dev)
    rows = [
        row
        for strategy in arguments.strategies
        for seed in arguments.seeds
        for row in run(arguments.folder, strategy, seed, changed, not arguments.no_compose)
    ]
    print(table(rows))
    if arguments.json:
        where = environment()
        write_whole(arguments.json, json.dumps({"environment": where, "rows": rows}, indent=2) + "\n")
        page = (
            f"# Strategies and compositions on the demo's tasks, {where['date']}\n\n"
            f"sentiment → spam → products → tweets, 480 training and 240 test rows each, all-MiniLM-L6-v2, mean ± "
            f"standard deviation of seeds {', '.join(map(str, arguments.seeds))}. {where['processor']}. Made by "
            f"`python -m benchmarks.sequences --json FILE`.\n\n{table(rows)}\n"
        )
        write_whole(arguments.json.with_suffix(".md"), page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
