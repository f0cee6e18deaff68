"""One adapter."""

from __future__ import annotations

import pytest

from lorabank.algebra.factors import lora_scaling


@pytest.mark.parametrize(
    ("r", "alpha", "rslora", "s"), [(8, 32.0, False, 4.0), (16, 32.0, True, 8.0), (3, 1.5, False, 0.5)]
)
def test_scaling(r: int, alpha: float, rslora: bool, s: float) -> None:
    assert lora_scaling(r, alpha, use_rslora=rslora) == s
