"""A metric of one generated answer."""

from __future__ import annotations

from lorabank.evaluation.text_metrics import normalise


def contained(said: str, gold: str) -> float:
    """1 where the right answer stands in what was said, else 0; both normalised."""
    return float(f" {normalise(gold)} " in f" {normalise(said)} ")
