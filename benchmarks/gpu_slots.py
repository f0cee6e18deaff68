"""An adapter from pinned memory into its place in a stack on the device, against one flat copy of its bytes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.device import adapters, clock, random_model, sizes
from benchmarks.harness import Result, compare, from_comparison

BAR = 2.0
REPEATS = 20


def measure(device: str, shape: str) -> list[Result]:
    """The last slot of a stack is filled module by module; on a CPU there is no pinned memory to copy from."""
    work, model = sizes(shape), random_model(shape, device)
    stack, pinned = adapters(model, work.earlier[-2]), device.startswith("cuda")
    places: list[Tensor] = []
    for factors in stack.modules.values():
        last = int((factors.owner < len(stack.names) - 1).sum())
        places += [factors.A[last:], factors.B[:, last:]]
    host = [_host(place, pinned) for place in places]
    flat = torch.cat([place.reshape(-1) for place in places])
    flat_host = _host(flat, pinned)

    def slot() -> None:
        for _ in range(REPEATS):
            for place, tensor in zip(places, host, strict=True):
                place.copy_(tensor, non_blocking=True)

    def one_copy() -> None:
        for _ in range(REPEATS):
            flat.copy_(flat_host, non_blocking=True)

    forms = {"flat": one_copy, "slot": slot}
    seen = compare(forms, baseline="flat", rounds=work.rounds, clock=clock(device))["slot"]
    what = f"an adapter into its slot, {shape}, all linear layers, against one flat copy"
    result = from_comparison("gpu_slots", what, seen, BAR)
    return [replace(result, floor=1.0, detail=result.detail | {"bytes": flat.nbytes, "repeats": REPEATS})]


def _host(tensor: Tensor, pinned: bool) -> Tensor:
    copied = tensor.contiguous().cpu().clone()
    return copied.pin_memory() if pinned else copied
