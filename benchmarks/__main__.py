"""``python -m benchmarks``: run all benchmarks, or some; exit 1 when a bar is missed."""

from __future__ import annotations

import os

# Before anything imports torch or numpy.
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import argparse
import json
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, environment

BENCHMARKS = ("startup", "step", "language_step", "merged", "memory", "scoring", "routing", "prefix", "matrix")


def main() -> int:
    """Measure, print the table, write the files asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ratios and the bars they must hold.")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="this one only; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, and a table to FILE.md")
    arguments = parser.parse_args()

    results: list[Result] = []
    for name in arguments.only or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr)
        results += import_module(f"benchmarks.{name}").measure()
    where = environment()
    print(table(results))
    if arguments.json:
        record = {"environment": where, "results": [asdict(result) | {"holds": result.holds} for result in results]}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        arguments.json.with_suffix(".md").write_text(page(where, results), encoding="utf-8")
    return 0 if all(result.holds for result in results) else 1


def table(results: list[Result]) -> str:
    """The results as a Markdown table."""
    lines = ["| benchmark | measured | value | bar | |", "| --- | --- | ---: | ---: | --- |"]
    for result in results:
        numbers = f"{result.value:.3f} {result.unit} | {result.bar:.2f} {result.unit}"
        lines.append(f"| {result.benchmark} | {result.what} | {numbers} | {'ok' if result.holds else 'MISSED'} |")
    return "\n".join(lines)


def page(where: dict[str, Any], results: list[Result]) -> str:
    """The table with the circumstances."""
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    return (
        f"# Benchmarks of {where['date']}\n\n"
        f"{where['processor']}, {where['cores']} cores, {where['memory_gib']} GiB, {where['system']}; "
        f"Python {where['python']}, {versions}; one thread, CPU time. Made by `python -m benchmarks --json FILE`.\n\n"
        f"{table(results)}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
