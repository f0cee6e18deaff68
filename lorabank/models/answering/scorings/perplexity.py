"""``perplexity``: how likely the model finds the texts themselves; a prompt is answered by generation."""

from __future__ import annotations

from dataclasses import dataclass

from lorabank.models.answering.scorings.generation import Generation


@dataclass(frozen=True)
class Perplexity(Generation):
    """The likelihood of each text, for each of its tokens."""

    metric = "inverse_perplexity"
    generates = False
    measures = True
