"""Orders of tasks that tables are made on, the rows of each, and files of rows that a later run adds to."""

from __future__ import annotations

import json
import os
import statistics
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.harness import environment, write_whole
from benchmarks.sequences import prepare as prepare_demo

if TYPE_CHECKING:
    from lorabank.core.observer import Observer

ORDERS = {
    "demo": ("sentiment", "spam", "products", "tweets"),
    "short": ("dbpedia", "amazon", "agnews"),
    "long": ("mnli", "cb", "wic", "copa", "boolq", "rte", "sst2", "dbpedia", "agnews", "amazon"),
}
"""Tasks in the order in which they are learnt: the demo's, or those of the folder ``CL_BENCHMARK``."""
BASES = {"minilm": "all-MiniLM-L6-v2", "smollm2": "SmolLM2-135M-Instruct"}
_FILES = {"data": "train.jsonl", "eval_data": "test.jsonl"}
_ROWS = {"minilm": (480, 240), "smollm2": (96, 48)}
"""Default numbers of training and test rows of a task, by base."""


class Asked(NamedTuple):
    """What a table is made on.

    Attributes:
        data: One of the orders.
        base: One of the base models.
        train: Training rows of each task.
        test: Its test rows.
    """

    data: str
    base: str
    train: int
    test: int

    def arguments(self) -> str:
        """As they are typed."""
        return f"--data {self.data} --base {self.base} --rows {self.train} {self.test}"

    def folder(self, place: Path) -> Path:
        """Where its banks and data lie: banks of other data, another base or other rows are not its own."""
        return place / f"{self.data}-{self.base}-{self.train}-{self.test}"


def read_arguments(parser: ArgumentParser, folder: str, methods: Collection[str]) -> tuple[Namespace, Asked]:
    """Add what every such table is asked for, and read it.

    Args:
        parser: Of the program.
        folder: Default of ``--folder``.
        methods: The names that ``--methods`` takes.
    """
    parser.add_argument("--data", choices=ORDERS, default="demo", help="the demo's tasks, or an order of CL_BENCHMARK")
    parser.add_argument("--base", choices=BASES, default="minilm")
    parser.add_argument("--rows", type=int, nargs=2, metavar="N", help="training and test rows of each task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--methods", nargs="+", default=[], choices=methods, metavar="NAME", help="these only; default: all"
    )
    parser.add_argument("--folder", type=Path, default=Path(folder), help="banks and data, in a folder for each table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows here, and the table to FILE.md")
    found = parser.parse_args()
    if found.data != "demo" and "CL_BENCHMARK" not in os.environ:
        parser.error(f"--data {found.data}: set CL_BENCHMARK to the folder of its tasks")
    return found, Asked(found.data, found.base, *(found.rows or _ROWS[found.base]))


def made() -> dict[str, Any]:
    """When, and by which commit, a row was measured: a later run may add rows to a file."""
    where = environment()
    return {name: where[name] for name in ("date", "commit")}


def prepare(target: Path, asked: Asked) -> None:
    """Write each task's rows: the first of its files, which are in random order."""
    if asked.data == "demo":
        prepare_demo(target, 0)
    source = target if asked.data == "demo" else Path(os.environ["CL_BENCHMARK"])
    for task in ORDERS[asked.data]:
        (target / task).mkdir(parents=True, exist_ok=True)
        for name, size in zip(_FILES.values(), asked[2:], strict=True):
            with (source / task / name).open(encoding="utf-8") as lines:
                kept = "".join(islice(lines, size))
            (target / task / name).write_text(kept, encoding="utf-8")


def learn_all(bank: Path, rows: Path, asked: Asked, settings: Mapping[str, Any], observer: Observer) -> None:
    """Learn the tasks that are not in the bank yet, with the demo's settings and ``settings``."""
    from lorabank.core.config import InitConfig, TrainConfig
    from lorabank.demo.run import SETTINGS
    from lorabank.sequences.bank import learn, learnt_tasks

    init = InitConfig(task_type="CAUSAL_LM") if asked.base == "smollm2" else None
    there = learnt_tasks(bank)
    for task in ORDERS[asked.data]:
        if task not in there:
            files = {kind: str(rows / task / name) for kind, name in _FILES.items()}
            observer.notice(f"{bank.name}: learning {task}")
            learn(bank, task, TrainConfig(**{**SETTINGS, **files, **settings}), init, observer)


def earlier(target: Path | None, asked: Asked) -> list[dict[str, Any]]:
    """Rows that the file has already; it must be of the same data, base and number of rows."""
    if target is None or not target.exists():
        return []
    found = json.loads(target.read_text(encoding="utf-8"))
    if found["asked"] != asked._asdict():
        sys.exit(f"{target} has rows of {found['asked']}: name another file")
    return list(found["rows"])


def write_rows(
    target: Path,
    title: str,
    command: str,
    asked: Asked,
    rows: Sequence[Mapping[str, Any]],
    note: str,
    table: str,
) -> None:
    """The rows as JSON, and a page with the table beside them.

    Args:
        target: The JSON file.
        title: Of the page.
        command: The module that makes these rows, and its own options.
        asked: What they are made on.
        rows: All of them.
        note: For the reader of the table.
        table: As Markdown.
    """
    where = environment()
    content = {"environment": where, "asked": asked._asdict(), "rows": rows}
    write_whole(target, json.dumps(content, indent=1) + "\n")
    seeds = [str(seed) for seed in sorted({one["seed"] for one in rows})]
    named = ", ".join(seeds)
    over = f"seed {named}" if len(seeds) == 1 else f"mean ± standard deviation of seeds {named}"
    page = (
        f"# {title} on {' → '.join(ORDERS[asked.data])}, {where['date']}\n\n"
        f"{asked.train} training and {asked.test} test rows of each task, {BASES[asked.base]}, "
        f"default settings, {over}; {note}. {where['processor']}. "
        f"Made by `python -m {command} {asked.arguments()} --seeds {' '.join(seeds)} --json FILE`.\n\n{table}\n"
    )
    write_whole(target.with_suffix(".md"), page)


def spread(values: Iterable[float | None], seeds: int = 0) -> str:
    """Mean ± standard deviation of what is there; with the number of values where it is fewer than ``seeds``."""
    there = [value for value in values if value is not None]
    if not there:
        return ""
    beside = f" ± {statistics.stdev(there):.3f}" if len(there) > 1 else ""
    beside += f" (n = {len(there)})" if len(there) < seeds else ""
    return f"{statistics.mean(there):.3f}{beside}"
