"""Keys of cells are SHA-256 of canonical JSON, whatever is hashed once for several of them."""

from __future__ import annotations

import hashlib
import json
import random

import pytest

from lorabank.evaluation.keys import CellKeys

SETTINGS = {"dtype": "float32", "batch_size": 64, "device": "cpu", "metric": "auto", "more": [None, 0.1, "é"]}


def by_hand(identity: list[object], data: str) -> str:
    value = [2, "f" * 64, identity, data, SETTINGS]
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def entries(values: list[object]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"))[1:-1]


@pytest.mark.parametrize("seed", range(5))
def test_a_key_is_the_digest_of_all_that_goes_in(seed: int) -> None:
    """In any order and again, with parts of one and of several entries, some of them begun alike."""
    chance = random.Random(seed)
    keys = CellKeys("f" * 64, SETTINGS)
    states: list[list[object]] = [["sum", None, [["a" * k, 1.0]]] for k in range(100)]
    heads: list[object] = [["head", None, {"labels": ["b", "a"], "é": k}] for k in range(3)]
    for _ in range(300):
        parts = [chance.choice(states), *([[chance.choice(heads)]] if chance.random() < 0.8 else [])]
        parts += [["more", chance.randrange(3)]] if chance.random() < 0.3 else []
        data = str(chance.randrange(3)) * 64
        whole = [entry for part in parts for entry in part]
        assert keys.key(tuple(map(entries, parts)), data) == by_hand(whole, data)
