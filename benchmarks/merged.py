"""Fixed weights, merged: a forward pass against the bare base's, and what it costs to go from state to state.

Every state of a matrix is built anew from the base. To add each adapter's delta to the state before would save what
the second number is above 1, and a score would then hang on the states that were there before it: sums of floats
depend on their order, and a cell is kept under the digest of its own state alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import batch, every_linear, minilm, query_and_value, random_stack
from lorabank.models.mixing.mixture import Mixture

ADAPTERS = 15
BAR, STATES_BAR = 1.03, 1.04
ROUNDS, STATES_ROUNDS = 40, 5


def measure() -> list[Result]:
    """32 texts of 64 tokens in one state; 128 such texts in each of 3 states, O-LoRA's sums of 5, 10 and 15."""
    rows = {name: tensor for name, tensor in batch(32, 64).items() if name != "labels"}
    base, composed = minilm().eval(), minilm().eval()
    mixture = Mixture(composed, random_stack(composed, query_and_value(composed), ADAPTERS))
    mixture.merge(torch.full((ADAPTERS,), 0.5))
    with torch.inference_mode():
        forms = {"base": lambda: base(**rows), "merged": lambda: composed(**rows)}
        comparison = compare(forms, baseline="base", rounds=ROUNDS)["merged"]
    merged = from_comparison("merged", f"{ADAPTERS} adapters merged, against the bare base", comparison, BAR)
    return [replace(result, floor=1.0) for result in (merged, _states())]


def _states() -> Result:
    rows = {name: tensor for name, tensor in batch(32, 64).items() if name != "labels"}
    model = minilm().eval()
    mixture = Mixture(model, random_stack(model, every_linear(model), ADAPTERS))
    states = torch.ones(ADAPTERS, ADAPTERS).tril()[[4, 9, 14]]

    @torch.inference_mode()
    def score(enter: bool) -> None:
        for state in states:
            if enter:
                mixture.merge(state)
            for _ in range(4):
                model(**rows)

    mixture.merge(states[-1])
    forms = {"scoring": lambda: score(False), "entering and scoring": lambda: score(True)}
    seen = compare(forms, baseline="scoring", rounds=STATES_ROUNDS, warmup=1)["entering and scoring"]
    what = "states of 5, 10 and 15 adapters entered, 128 texts scored in each, against the scoring, all linear layers"
    return from_comparison("merged", what, seen, STATES_BAR)
