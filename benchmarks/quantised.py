"""``python -m benchmarks.quantised``: what few bits cost SmolLM2-135M-Instruct, and what a correction brings back.

Prints, for the float base and each quantiser, the weights' MiB, with what stays a float in bfloat16, and the mean
negative log-likelihood of six pieces of 256 tokens of the demo's test texts, computed in float32. The float base is
the package's GGUF file made into floats. With `--json FILE` the rows are written there and the table beside it, as
benchmarks/results/quantised.json and .md have them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness import environment, write_whole
from lorabank.demo.run import TASKS
from lorabank.models.bases.loading import describe_base, load_base
from lorabank.models.bases.resolving import resolve_base

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
KINDS = ("float", "nf4", "nf4+lqer", "nf4+loftq", "nf4+lq-lora", "int8", "hqq")
_HEADER = "| base | weights, MiB | negative log-likelihood |\n| --- | ---: | ---: |"
PIECES, TOKENS, LINES = 6, 256, 60
_MIB = 2**20


def text() -> str:
    """The first test texts of each task of the demo, in lines."""
    folder = files("lorabank.demo") / "data"
    found: list[str] = []
    for task in TASKS:
        lines = (folder / task / "test.jsonl").read_text(encoding="utf-8").splitlines()[:LINES]
        found += [json.loads(line)["text"] for line in lines]
    return "\n".join(found)


def measure(kind: str) -> tuple[float, float]:
    """MiB of the parameters and buffers, what stays a float in bfloat16; and nats per token, computed in float32."""
    record = describe_base(resolve_base(MODEL), "CAUSAL_LM", None if kind == "float" else kind)
    size = _bytes(load_base(record, dtype=torch.bfloat16).model) / _MIB
    base = load_base(record)
    ids = torch.tensor(base.tokenizer(text())["input_ids"][: PIECES * TOKENS]).view(PIECES, TOKENS)
    with torch.inference_mode():
        losses = [float(base.model(input_ids=piece[None], labels=piece[None]).loss) for piece in ids]
    return size, sum(losses) / PIECES


def _bytes(model: nn.Module) -> int:
    tensors = {one.data_ptr(): one for one in (*model.parameters(), *model.buffers())}
    return sum(one.numel() * one.element_size() for one in tensors.values())


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    return f"| {row['base']} | {row['mib']:.1f} | {row['loss']:.3f} |"


def save(target: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows as JSON, and the table beside them."""
    where = environment()
    written = {"environment": where, "model": MODEL, "rows": rows}
    write_whole(target, json.dumps(written, indent=1) + "\n")
    page = (
        f"# SmolLM2-135M-Instruct in few bits, {where['date']}\n\n"
        f"Weights with what stays a float in bfloat16; mean negative log-likelihood in nats per token of {PIECES} "
        f"times {TOKENS} tokens of the demo's test texts. {where['processor']}. "
        f"Made by `python -m benchmarks.quantised {' '.join(row['base'] for row in rows)} --json FILE`.\n\n"
        f"{_HEADER}\n" + "\n".join(map(line, rows)) + "\n"
    )
    write_whole(target.with_suffix(".md"), page)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantised", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=KINDS, metavar="KIND", help=f"default: {' '.join(KINDS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows here, and the table to FILE.md")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(_HEADER)
    for kind in asked.kinds:
        size, loss = measure(kind)
        rows.append({"base": kind, "mib": round(size, 1), "loss": round(loss, 4)})
        print(line(rows[-1]), flush=True)
        if asked.json:
            save(asked.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
