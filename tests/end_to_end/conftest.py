"""A tiny base and small data files for commands that run in processes of their own."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, save_base: Callable[..., Path]) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rows of letters, labelled by the half of the alphabet they come from."""
    chance = random.Random(0)
    rows = [
        {"text": " ".join(chance.choices(half, k=chance.randint(3, 8))), "label": label}
        for _ in range(12)
        for label, half in (("first", "abcdefghijklm"), ("second", "nopqrstuvwxyz"))
    ]
    path = tmp_path_factory.mktemp("data") / "letters.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
