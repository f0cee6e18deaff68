"""``python -m benchmarks.part NAME DEVICE SHAPE FOLDER FILE``: one part of the GPU benchmarks in a process of its own.

Its results go into the file. Whatever it took on the device is free when it ends, whichever way it ends.
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
"""Seconds; a part is made for less than 120, without the writing of the base."""


def in_own_process(name: str, device: str, shape: str, folder: Path) -> list[Result]:
    """Run a part.

    Args:
        name: Its module.
        device: As of torch.
        shape: One of `benchmarks.device.SHAPES`.
        folder: Where bases are written, and stay for the next part.

    Raises:
        RuntimeError: It failed, or took longer than `LIMIT`.
    """
    file = folder / "results.json"
    file.unlink(missing_ok=True)
    words = [sys.executable, "-m", "benchmarks.part", name, device, shape, str(folder), str(file)]
    try:
        done = subprocess.run(words, check=False, timeout=LIMIT)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"it took longer than {LIMIT} s") from error
    if done.returncode or not file.exists():
        raise RuntimeError(f"it ended with exit code {done.returncode}")
    return [Result(**result) for result in json.loads(file.read_text(encoding="utf-8"))]


def main(name: str, device: str, shape: str, folder: str, file: str) -> None:
    """Measure, and write the results."""
    results: list[Result] = import_module(f"benchmarks.{name}").measure(device, shape, Path(folder))
    Path(file).write_text(json.dumps([asdict(result) for result in results]), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
