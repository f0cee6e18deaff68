"""One adapter."""

from __future__ import annotations

import pytest
import torch

from lorabank.algebra.factors import DenseDelta, LoraFactors, lora_scaling, without_zeros


@pytest.mark.parametrize(
    ("r", "alpha", "rslora", "s"), [(8, 32.0, False, 4.0), (16, 32.0, True, 8.0), (3, 1.5, False, 0.5)]
)
def test_scaling(r: int, alpha: float, rslora: bool, s: float) -> None:
    assert lora_scaling(r, alpha, use_rslora=rslora) == s


def test_components_that_are_zero_are_left_out() -> None:
    """The delta weight stays; a module of which nothing is left goes, unless it has a gain."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    A = {name: drawn(4, 6) for name in "abcd"}
    B = {name: drawn(5, 4) for name in "abcd"}
    A["a"][1], B["a"][:, 2] = 0, 0
    B["b"].zero_()
    A["c"].zero_()
    whole = LoraFactors(A, B, dict.fromkeys("abcd", 0.5), {"c": drawn(5)})
    left = without_zeros(whole)
    assert {name: (*left.A[name].shape, *left.B[name].shape) for name in left.A} == {
        "a": (2, 6, 5, 2), "c": (1, 6, 5, 1), "d": (4, 6, 5, 4),
    }  # fmt: skip
    assert left.scaling == dict.fromkeys("acd", 0.5)
    weight = drawn(5, 6)
    for name in left.A:
        torch.testing.assert_close(left.delta(name, weight), whole.delta(name, weight))


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_a_dense_delta_in_factors_is_itself(shape: tuple[int, int]) -> None:
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    factors = DenseDelta({"layer": delta}).factors()
    assert factors.A["layer"].shape == (min(shape), shape[1])
    assert torch.equal(factors.delta("layer"), delta)
