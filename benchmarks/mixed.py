"""A batch in which every text has its own adapter: ours and PEFT's ``adapter_names`` against the bare base model.

A prefill of MiniLM with every linear layer adapted, and one step of decoding behind a key-value cache of a model of
SmolLM2-135M's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.floors import least_forward
from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import batch, every_linear, minilm, random_stack, smollm2, with_peft
from lorabank.models.mixing.mixture import Mixture

ADAPTERS = 8
ROUNDS = 8
BASE_BAR, PEFT_BAR, DECODE_BAR = 1.15, 0.8, 1.25
PROMPT = 128
_STEP = {"input_ids": torch.zeros(8, 1, dtype=torch.long)}


def measure() -> list[Result]:
    """Against the base and against PEFT."""
    rows = {name: tensor for name, tensor in batch(32, 64).items() if name != "labels"}
    prefill = _forms(minilm, 32, lambda model: lambda **more: model(**rows, **more))
    decode = _forms(smollm2, 8, _decoding)
    what = f"{ADAPTERS} adapters in one batch, all linear layers"
    floor = {"32 x 64 tokens": _floor(minilm(), rows), "a step of decoding": _floor(smollm2(), _STEP)}
    found = []
    with torch.inference_mode():
        for name, forms, bar in (("32 x 64 tokens", prefill, BASE_BAR), ("a step of decoding", decode, DECODE_BAR)):
            against = compare(forms, baseline="base", rounds=ROUNDS, warmup=1)
            result = from_comparison("mixed", f"{what}, {name}, against the bare base", against["ours"], bar)
            found.append(replace(result, floor=floor[name]))
            ratio = against["ours"].ratio / against["peft"].ratio
            found.append(Result("mixed", f"{what}, {name}, against PEFT", ratio, PEFT_BAR, "x", {}))
    return found


def _floor(model: nn.Module, rows: dict[str, Tensor]) -> float:
    return least_forward(model, every_linear(model), rows, 1)


def _forms(
    make: Callable[[], nn.Module], samples: int, call: Callable[[nn.Module], Callable[..., Any]]
) -> Mapping[str, Callable[[], object]]:
    """The model bare, with our adapters and with PEFT's, all in the same mixed state."""
    route = torch.arange(samples) % ADAPTERS
    base, ours, peft = make().eval(), make().eval(), make().eval()
    modules = every_linear(ours)
    mixture = Mixture(ours, random_stack(ours, modules, ADAPTERS))
    weights = torch.eye(ADAPTERS)[route]
    wrapped = with_peft(peft, modules, ADAPTERS)
    names = [f"task-{k}" for k in route.tolist()]
    bare, own, theirs = call(base), call(ours), call(wrapped)

    def routed() -> object:
        mixture.per_sample(weights)
        return own()

    return {"base": bare, "ours": routed, "peft": lambda: theirs(adapter_names=names)}


def _decoding(model: nn.Module) -> Callable[..., Any]:
    """One step of 8 rows; the cache is cut back afterwards, so that every step is the same."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 49152, (8, PROMPT), generator=generator)
    with torch.inference_mode():
        cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    step: Tensor = ids[:, -1:]

    def decode(**more: Any) -> object:
        found = model(input_ids=step, past_key_values=cache, use_cache=True, **more)
        cache.crop(-1)
        return found

    return decode
