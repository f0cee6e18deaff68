"""A training step of a large language model after T earlier tasks, against plain PEFT LoRA with none: time and memory.

Both train from the base's files on, as a user does (`benchmarks.training_path`): ours by `train_adapter` with the
penalty of O-LoRA, PEFT by transformers' Trainer on a base in bfloat16 under autocast. A step is 4k tokens, all linear
layers are adapted, and logits are made for the answers alone.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.device import adapter_of, clock, linear_modules, saved_base, shell, sizes
from benchmarks.harness import Result
from benchmarks.training_path import Meter, Rows, ours, peft
from lorabank.algebra.stack import AdapterStack

STEP_BAR, MEMORY_BAR = 1.02, 0.80


def measure(device: str, shape: str, folder: Path) -> list[Result]:
    """Every number of earlier tasks."""
    work, base = sizes(shape), saved_base(shape, device, folder)
    rows = Rows(count=work.steps * work.tokens // work.row, tokens=work.row, batch=work.tokens // work.row)
    given = {"target_modules": "all-linear", "max_new_tokens": 1}
    theirs = peft(base, rows, Meter(clock(device), device), **given)
    results = []
    for count in work.earlier:
        names = tuple(f"task-{k}" for k in range(count))
        past = partial(_past, shape, names)
        own = ours(base, rows, Meter(clock(device), device), names, past, **given)
        what = f"{shape}, all linear layers, T = {count}, against PEFT LoRA"
        seconds = {"lorabank": own.seconds(), "peft": theirs.seconds()}
        step = seconds["lorabank"] / seconds["peft"]
        of_step = f"O-LoRA step of {work.tokens} tokens, {what}"
        results.append(Result("gpu_step", of_step, step, STEP_BAR, "x", {"seconds": seconds}))
        peaks = {"lorabank": own.peak(), "peft": theirs.peak()}
        memory = peaks["lorabank"] / peaks["peft"]
        results.append(Result("gpu_step", f"peak memory of it, {what}", memory, MEMORY_BAR, "x", {"bytes": peaks}))
    return results


def _past(shape: str, names: tuple[str, ...]) -> AdapterStack:
    """Earlier tasks with the same random numbers, on the CPU as a bank gives them: what they are does not matter."""
    model = shell(shape)
    adapter = adapter_of({name: tuple(model.get_submodule(name).weight.shape) for name in linear_modules(model)})
    return AdapterStack.build(dict.fromkeys(names, adapter))
