"""``python -m benchmarks``: run all benchmarks, or some; exit 1 when a bar is missed.

``python -m benchmarks --device cuda --only gpu_step --shape llama-8b`` is one part, of one shape, of those that need a
GPU; each takes less than two minutes. Every part runs in a process of its own; with ``--json FILE`` what is finished
is kept there, and the same command does the rest.
"""

from __future__ import annotations

import os

# Before anything imports torch or numpy.
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import asdict, fields
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, environment, write_whole
from benchmarks.part import in_own_process

BENCHMARKS = (
    "startup",
    "step",
    "language_step",
    "effective_weight",
    "variants",
    "variant_steps",
    "penalty",
    "overlap",
    "merged",
    "mixed",
    "attention",
    "compression",
    "loading",
    "memory",
    "training_memory",
    "scoring",
    "routing",
    "prefix",
    "matrix",
    "scale",
    "add_task",
    "predict",
    "serve",
    "threads",
)
ON_DEVICE = ("gpu_step", "gpu_decode", "gpu_attention", "gpu_slots", "gpu_scoring")
SHAPES = ("t5-large", "llama-1b", "qwen2.5-7b", "llama-8b", "tiny", "tiny-t5")


def main() -> int:
    """Measure, print the table, write the files asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ratios and the bars they must hold.")
    parser.add_argument(
        "--only", action="append", choices=(*BENCHMARKS, *ON_DEVICE), help="this one only; may be repeated"
    )
    parser.add_argument("--device", help="run the gpu_ benchmarks there: cuda, cuda:N, or cpu to see that they run")
    parser.add_argument(
        "--shape", action="append", choices=SHAPES, help="model of the gpu_ benchmarks; may be repeated"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, and a table to FILE.md")
    arguments = parser.parse_args()

    there = ON_DEVICE if arguments.device else BENCHMARKS
    if wrong := set(arguments.only or ()) - set(there):
        parser.error(f"{min(wrong)} {'does not take' if arguments.device else 'needs'} --device")
    if arguments.device and not _is_there(arguments.device):
        parser.error(f"--device {arguments.device}: torch sees no such device")
    shapes = arguments.shape or SHAPES[:4] if arguments.device else [None]

    where = environment(arguments.device)
    finished = _finished(arguments.json, where)
    broken = []
    with tempfile.TemporaryDirectory() as folder:
        for shape, name in product(shapes, arguments.only or there):
            part = " ".join((name, arguments.device, shape)) if shape else name
            if part in finished:
                print(part, "is in", arguments.json, file=sys.stderr, flush=True)
                continue
            print(part, "...", file=sys.stderr, flush=True)
            try:
                finished[part] = in_own_process(name, Path(folder), arguments.device, shape)
            except (RuntimeError, OSError):  # out of memory, say: that costs this part alone
                traceback.print_exc()
                broken.append(part)
            if arguments.json:  # after every part: what was measured stays when the next one is stopped
                _write(arguments.json, where, finished)
    results = [result for found in finished.values() for result in found]
    print(table(results))
    for part in broken:
        print(f"{part}: failed, see above", file=sys.stderr)
    return 0 if not broken and all(result.holds for result in results) else 1


def _write(path: Path, where: dict[str, Any], finished: Mapping[str, list[Result]]) -> None:
    measured = [(part, result) for part, found in finished.items() for result in found]
    results = [{"part": part} | asdict(result) | {"holds": result.holds} for part, result in measured]
    nothing = [part for part, found in finished.items() if not found]
    record = {"environment": where, "results": results, "without_results": nothing}
    write_whole(path, json.dumps(record, indent=2) + "\n")
    write_whole(path.with_suffix(".md"), page(where, [result for _, result in measured]))


def _finished(path: Path | None, where: dict[str, Any]) -> dict[str, list[Result]]:
    """The parts in a file that such a machine wrote with this commit and such libraries; the date may be another."""
    if path is None or not path.exists():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    if {**record["environment"], "date": None} != {**where, "date": None}:
        return {}
    found: dict[str, list[Result]] = {part: [] for part in record.get("without_results", ())}
    names = [field.name for field in fields(Result)]
    for result in record["results"]:
        if "part" in result:
            found.setdefault(result["part"], []).append(Result(**{name: result[name] for name in names}))
    return found


def _is_there(device: str) -> bool:
    import torch

    kind, _, number = device.partition(":")
    return device == "cpu" or (kind == "cuda" and int(number or 0) < torch.cuda.device_count())


def table(results: list[Result]) -> str:
    """The results as a Markdown table; columns that nobody fills are left out."""
    columns = ["value", "bar", *(name for name in ("peer", "floor") if any(getattr(r, name) for r in results))]
    titles = ["measured" if name == "value" else name for name in columns]
    lines = [
        f"| benchmark | what | {' | '.join(titles)} | |",
        f"| --- | --- | {' | '.join('---:' for _ in columns)} | --- |",
    ]
    for result in results:
        numbers = (getattr(result, name) for name in columns)
        cells = ("" if number is None else f"{_shown(number)} {result.unit}".rstrip() for number in numbers)
        held = "ok" if result.holds else "MISSED"
        lines.append(f"| {result.benchmark} | {result.what} | {' | '.join(cells)} | {held} |")
    return "\n".join(lines)


def _shown(number: float) -> str:
    """Three digits, and for what is smaller than they can tell its size."""
    return f"{number:.3f}" if number == 0 or abs(number) >= 0.01 else f"{number:.1e}"


def page(where: dict[str, Any], results: list[Result]) -> str:
    """The table with the circumstances."""
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    made = f" at commit {where['commit']}" if where["commit"] else ""
    return (
        f"# Benchmarks of {where['date']}\n\n"
        f"{where['processor']}, {where['cores']} cores, {where['memory_gib']} GiB, {where['system']}; "
        f"Python {where['python']}, {versions}; {where['clock']}. "
        f"Made by `python -m benchmarks --json FILE`{made}.\n\n"
        f"{table(results)}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
