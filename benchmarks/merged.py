"""A forward pass of 15 adapters in fixed weights, merged, against the bare base model."""

from __future__ import annotations

import torch

from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import batch, minilm, query_and_value, random_stack
from lorabank.models.mixture import Mixture

ADAPTERS = 15
BAR = 1.03
ROUNDS = 40


def measure() -> list[Result]:
    """32 texts of 64 tokens through both."""
    rows = {name: tensor for name, tensor in batch(32, 64).items() if name != "labels"}
    base, composed = minilm().eval(), minilm().eval()
    mixture = Mixture(composed, random_stack(composed, query_and_value(composed), ADAPTERS))
    mixture.merge(torch.full((ADAPTERS,), 0.5))
    with torch.inference_mode():
        forms = {"base": lambda: base(**rows), "merged": lambda: composed(**rows)}
        comparison = compare(forms, baseline="base", rounds=ROUNDS)["merged"]
    return [from_comparison("merged", f"{ADAPTERS} adapters merged, against the bare base", comparison, BAR)]
