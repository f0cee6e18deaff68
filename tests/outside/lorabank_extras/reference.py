"""A reference: the biases of the base are trained, and no other weight of it (BitFit, arXiv 2106.10199)."""

from __future__ import annotations

from dataclasses import dataclass

from lorabank.sequences.references.base import Reference


@dataclass(frozen=True)
class Biases(Reference):
    """All biases, and the head of the task."""

    def trains(self, weight: str) -> bool:
        """Whether it is a bias."""
        return weight.endswith(".bias")


BIASES = Biases("biases", "all biases", 1e-3, about="The biases of the base are trained on every task in turn.")
