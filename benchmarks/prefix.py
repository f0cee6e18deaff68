"""Eight states of a model whose lower half is frozen, with that half computed once, against eight full passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import torch
from torch import Tensor, nn

from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import minilm, query_and_value, random_stack
from lorabank.models.bases.sites import layer_of
from lorabank.models.mixing.mixture import Mixture
from lorabank.models.mixing.prefix import FrozenPrefix

STATES, FIRST_LAYER = 8, 3  # of 6
ROWS, TOKENS = 32, 64
BAR = 0.62
ROUNDS = 8


def measure() -> list[Result]:
    """Batches are new in each round, so that nothing is left over from the last one; merging counts in both."""
    forms = {"full": _states(reuse=False), "reused": _states(reuse=True)}
    with torch.inference_mode():
        seen = compare(forms, baseline="full", rounds=ROUNDS, warmup=1)["reused"]
    what = f"{STATES} states with the lower half frozen, against {STATES} full passes"
    return [from_comparison("prefix", what, seen, BAR)]


def _states(*, reuse: bool) -> Callable[[], list[Tensor]]:
    model = minilm().eval()
    modules = [name for name in query_and_value(model) if (layer_of(model, name) or ("", 0))[1] >= FIRST_LAYER]
    mixture = Mixture(model, random_stack(model, modules, STATES))
    if reuse:
        FrozenPrefix(model, modules)
    batches = _batches()
    return lambda: _walk(model, mixture, next(batches))


def _walk(model: nn.Module, mixture: Mixture, rows: dict[str, Tensor]) -> list[Tensor]:
    logits = []
    for state in range(1, STATES + 1):
        mixture.merge((torch.arange(STATES) < state).float())
        logits.append(model(**rows).logits)
    return logits


def _batches() -> Iterator[dict[str, Tensor]]:
    for seed in count():
        ids = torch.randint(1000, 30000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(seed))
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
