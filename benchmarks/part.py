"""``python -m benchmarks.part NAME FILE [DEVICE SHAPE FOLDER]``: one part of the benchmarks in a process of its own.

Its results go into the file. Whatever memory it took is free when it ends, whichever way it ends, so that no part is
measured in the memory that an earlier one left.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from benchmarks.harness import Result

LIMIT = 300
"""Seconds on a device; a part is made for less than 120, without the writing of the base."""


def in_own_process(name: str, folder: Path, device: str | None = None, shape: str | None = None) -> list[Result]:
    """Run a part.

    Args:
        name: Its module.
        folder: Where bases are written, and stay for the next part.
        device: As of torch; None for the parts that need none.
        shape: One of `benchmarks.device.SHAPES`, with a device.

    Raises:
        RuntimeError: It failed, or took longer than `LIMIT`.
    """
    file = folder / "results.json"
    file.unlink(missing_ok=True)
    words = [sys.executable, "-m", "benchmarks.part", name, str(file)]
    if device and shape:
        words += [device, shape, str(folder)]
    try:
        done = subprocess.run(words, check=False, timeout=LIMIT if device else None)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"it took longer than {LIMIT} s") from error
    if done.returncode or not file.exists():
        raise RuntimeError(f"it ended with exit code {done.returncode}")
    return [Result(**result) for result in json.loads(file.read_text(encoding="utf-8"))]


def main(name: str, file: str, device: str = "", shape: str = "", folder: str = "") -> None:
    """Measure, and write the results."""
    where = (device, shape, Path(folder)) if device else ()
    results: list[Result] = import_module(f"benchmarks.{name}").measure(*where)
    Path(file).write_text(json.dumps([asdict(result) for result in results]), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
