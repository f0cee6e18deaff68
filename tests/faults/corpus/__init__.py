"""Adapters that somebody prepared, generated and imported one by one: each has a documented exit code.

Five classes: A the format of the weights file, B the tensors, C the config, D what lies where a file should be, E text
that is shown. A weakness that is found later gets its adapter here.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any


def cases() -> tuple[Any, ...]:
    """All of them, in order."""
    from tests.faults.corpus import configs, formats, packaging, tensors, texts

    return (*formats.CASES, *tensors.CASES, *configs.CASES, *packaging.CASES, *texts.CASES)


def run(count: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Import them into a real bank through the command line, in this process.

    Args:
        count: How many, drawn with ``seed``; None for all.
        seed: See ``count``.

    Returns:
        ``tries``, and how many findings of the kinds ``lost``, ``damaged`` and ``uncaught``, with ``examples``.
    """
    from tests.faults.corpus.world import World

    chosen = list(cases())
    if count is not None and count < len(chosen):
        chosen = random.Random(seed).sample(chosen, count)
    found: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="lorabank-corpus-") as folder:
        world = World(Path(folder))
        for case in chosen:
            found += world.try_out(case)
    counts = {kind: sum(finding[0] == kind for finding in found) for kind in ("lost", "damaged", "uncaught")}
    return {"tries": len(chosen), **counts, "examples": [f"{kind}: {what}" for kind, what in found]}
