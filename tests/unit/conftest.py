"""Random LoRA adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

MakeAdapter = Callable[..., object]


@pytest.fixture
def make_adapter() -> MakeAdapter:
    """``make_adapter({module: (d_out, d_in)}, r, alpha, rslora=False, seed=0, dtype=float32)``: a `LoraFactors`."""
    import torch

    from lorabank.algebra.factors import LoraFactors

    def make(
        modules: Mapping[str, tuple[int, int]],
        r: int,
        alpha: float,
        *,
        rslora: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> LoraFactors:
        generator = torch.Generator().manual_seed(seed)
        A = {name: torch.randn(r, d_in, generator=generator).to(dtype) for name, (_, d_in) in modules.items()}
        B = {name: torch.randn(d_out, r, generator=generator).to(dtype) for name, (d_out, _) in modules.items()}
        return LoraFactors(A, B, dict.fromkeys(modules, alpha / r**0.5 if rslora else alpha / r))

    return make
