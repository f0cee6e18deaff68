"""Four labels scored behind a prompt, against one plain forward pass per label, on a device."""

from __future__ import annotations

from benchmarks.device import clock, random_model, sizes
from benchmarks.harness import Result, compare, from_comparison
from benchmarks.scoring import BAR, BATCH_SIZE, LABELS, plain_scores, random_prompts, tree_scores

ROWS = 64


def measure(device: str, shape: str) -> list[Result]:
    """As the benchmark ``scoring``; nothing for an encoder-decoder, which knows no tree."""
    work, model = sizes(shape), random_model(shape, device)
    if model.config.is_encoder_decoder:
        return []
    prompts = random_prompts(BATCH_SIZE if work.rounds < 3 else ROWS)
    forms = {
        "plain": lambda: plain_scores(model, prompts, LABELS, BATCH_SIZE),
        "tree": lambda: tree_scores(model, prompts, share_prefix=False),
        "shared": lambda: tree_scores(model, prompts, share_prefix=True),
    }
    seen = compare(forms, baseline="plain", rounds=work.rounds, warmup=1, clock=clock(device))
    what = f"{len(LABELS)} labels in one pass, {shape}, against one plain pass each"
    return [
        from_comparison("gpu_scoring", what, seen["tree"], BAR),
        from_comparison("gpu_scoring", f"{what}; instruction passed once", seen["shared"], BAR),
    ]
