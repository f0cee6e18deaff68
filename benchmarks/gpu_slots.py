"""An adapter from memory into its slot on the device, against the same numbers as one tensor.

Both begin at float32 on pageable memory, as a file is mapped, convert once into a pinned buffer of the slots' dtype,
and copy that over; ours goes on to its places, one for each of hundreds of tensors.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.device import adapter_of, clock, linear_modules, random_model, sizes
from benchmarks.harness import Result, compare, from_comparison
from lorabank.algebra.factors import FactorShape
from lorabank.models.mixing.resident_stack import ResidentStack

BAR = 1.5
REPEATS = 10


def measure(device: str, shape: str, folder: Path) -> list[Result]:
    """Two adapters take turns in the one slot that there is room for."""
    work, model = sizes(shape), random_model(shape, device)
    factors = adapter_of({name: tuple(model.get_submodule(name).weight.shape) for name in linear_modules(model)})
    of_one = {
        module: FactorShape(len(a), a.shape[1], len(factors.B[module]), factors.scaling[module])
        for module, a in factors.A.items()
    }
    parts = [part for both in (factors.A, factors.B) for part in both.values()]
    size = sum(part.numel() for part in parts) * model.dtype.itemsize
    resident = ResidentStack.reserve(
        {"a": of_one, "b": of_one}, lambda name: factors, device=device, dtype=model.dtype, max_bytes=size
    )
    flat = torch.cat([part.reshape(-1) for part in parts])
    pinned = torch.empty(flat.shape, dtype=model.dtype, pin_memory=device.startswith("cuda"))
    there = torch.empty(flat.shape, dtype=model.dtype, device=device)

    def slot() -> None:
        for turn in range(REPEATS):
            resident.place(torch.tensor([1.0, 0.0] if turn % 2 else [0.0, 1.0]))

    def one_copy() -> None:
        for _ in range(REPEATS):
            pinned.copy_(flat)
            there.copy_(pinned)

    seen = compare({"flat": one_copy, "slot": slot}, baseline="flat", rounds=work.rounds, clock=clock(device))["slot"]
    what = f"an adapter into its slot, {shape}, all linear layers, against one flat tensor"
    result = from_comparison("gpu_slots", what, seen, BAR)
    return [replace(result, floor=1.0, detail=result.detail | {"bytes": size, "repeats": REPEATS})]
