"""F16: merging adapters into the weights and taking them out again, and the same seed twice.

A small network switches through random mixtures: live (per sample) and merged answers differ by less than 1e-4 in
float32; in bfloat16 the difference is reported. After every switch back the base's parameters have the digest they
began with, and after each of 100 merges the answers of the base, in both dtypes, are equal bit for bit. Then one
task is trained four times from one seed, in processes of their own, on one and on two threads: the adapters have the
same bytes.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorabank.bank.bank import Bank
from tests.faults.outcome import Outcome
from tests.faults.processes import ENDED, in_a_fork, scratch
from tests.faults.training_kills import SETTINGS, save_material, train, warm_up

LIMIT = 1e-4
CYCLES = 100


def run(count: int | None, seed: int) -> Outcome:
    """``count`` switches, 1,000 unless said otherwise."""
    outcome: Outcome = in_a_fork(lambda: _run(count or 1000, seed))
    return outcome


def _run(count: int, seed: int) -> Outcome:
    import torch

    torch.set_num_threads(1)
    outcome = Outcome()
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            _switch(dtype, count, seed, outcome)
            _cycle(dtype, min(count, CYCLES), seed, outcome)
    _same_seed(outcome)
    return outcome


def _network(dtype: Any, seed: int) -> tuple[Any, Any, Any]:
    """A network, its adapters' mixture, and an input ``[4, 3, 64]``."""
    import torch
    from torch import nn

    from lorabank.algebra.factors import LoraFactors
    from lorabank.algebra.stack import AdapterStack
    from lorabank.models.mixing.mixture import Mixture

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64), nn.Tanh(), nn.Linear(64, 8)).to(dtype)
    shapes = {"0": (96, 64), "2": (64, 96), "4": (8, 64)}
    adapters = {
        name: LoraFactors(
            {module: torch.randn(r, d_in) / d_in**0.5 for module, (_, d_in) in shapes.items()},
            {module: torch.randn(d_out, r) / r for module, (d_out, _) in shapes.items()},
            dict.fromkeys(shapes, 2.0),
        )
        for name, r in (("a", 8), ("b", 4), ("c", 16))
    }
    gain = {module: 1 + torch.randn(d_out) / 4 for module, (d_out, _) in shapes.items()}
    adapters["b"] = replace(adapters["b"], gain=gain)
    x = torch.randn(4, 3, 64).to(dtype)
    return model, Mixture(model, AdapterStack.build(adapters, dtype=dtype)), x


def _digest(model: Any) -> str:
    digest = hashlib.sha256()
    for _, parameter in sorted(model.state_dict().items()):
        digest.update(parameter.contiguous().flatten().view(_bytes()).numpy().tobytes())
    return digest.hexdigest()


def _bytes() -> Any:
    import torch

    return torch.uint8


def _switch(dtype: Any, count: int, seed: int, outcome: Outcome) -> None:
    import torch

    model, mixture, x = _network(dtype, seed)
    before = _digest(model)
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for number in range(count):
        weights = torch.rand(3, generator=generator) * 2 - 0.5
        mixture.merge(weights)
        merged = model(x)
        mixture.per_sample(weights.expand(len(x), 3).contiguous())
        worst = max(worst, float((model(x) - merged).abs().max()))
        mixture.off()
        if _digest(model) != before:
            outcome.find("damaged", f"{dtype}: the base has changed after switch {number}")
            break
    if dtype == torch.float32 and worst >= LIMIT:
        outcome.find("damaged", f"live and merged differ by {worst:.1e}")
    outcome.notes.append(f"{str(dtype).removeprefix('torch.')} live against merged {worst:.1e}")
    outcome.tries += count


def _cycle(dtype: Any, count: int, seed: int, outcome: Outcome) -> None:
    import torch

    model, mixture, x = _network(dtype, seed)
    expected = model(x)
    for number in range(count):
        mixture.merge(torch.tensor([1.0 + number, -0.5, 1e-3 * number]))
        if torch.equal(model(x), expected):
            outcome.find("uncaught", f"{dtype}: merge {number} changed nothing")
        mixture.off()
        if not torch.equal(model(x), expected):
            outcome.find("damaged", f"{dtype}: another answer of the base after merge {number}")
            break
    outcome.tries += count


def _same_seed(outcome: Outcome) -> None:
    warm_up()
    with scratch() as folder:
        base, data = save_material(folder)
        words = ["add-task", "one", "--base", str(base), "--data", str(data), *SETTINGS, "--seed", "5"]
        digests = []
        for threads in (1, 1, 2, 2):
            bank = folder / "bank"
            if train(bank, words, lambda threads=threads: _on(threads)) != ENDED:  # type: ignore[misc]
                outcome.find("uncaught", f"the training on {threads} threads failed")
                return
            digests.append(Bank.open(bank).snapshot().adapter_of("one").digest)
            shutil.rmtree(Path(bank))
            outcome.tries += 1
    if digests[0] != digests[1] or digests[2] != digests[3]:
        outcome.find("damaged", "the same seed gave other bytes")
    outcome.notes.append(f"one and two threads: {'the same' if len(set(digests)) == 1 else 'other'} bytes")


def _on(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
