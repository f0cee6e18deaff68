r"""How the next token of each row of a batch is chosen: the likeliest one, or a draw.

With logits l of a row, its repetition penalty c, temperature T and top_p:

    l_i  <-  l_i / c if l_i > 0 else c l_i       for each token i that stands in the row already
    p    =   softmax(l / T)
    V    =   the smallest set of likeliest tokens with sum_{i in V} p_i >= top_p
    draw a token from p restricted to V

The penalty is CTRL's (Keskar et al. 2019, arXiv 1909.05858), the restriction is nucleus sampling (Holtzman et al.
2020, arXiv 1904.09751). T = 0 takes the largest l. Every row draws from a generator of its own seed, by the inverse
of its cumulative distribution in float64: equal logits give equal tokens, whatever rows are beside it and whatever
generator its device has. The logits themselves are rounded differently in another batch, so that a neighbouring token
is drawn there if the drawn point lies within this rounding of the border between the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorabank.core.config import SamplingConfig


class Choice:
    """A logits processor of transformers that leaves one token possible in each row that draws.

    Args:
        settings: Those of n rows.
        before: How many columns in front of each row are not its own: padding, or a decoder's start token.
    """

    def __init__(self, settings: Sequence[SamplingConfig], before: Sequence[int]) -> None:
        self._before = before
        self._penalties = {i: one.repetition_penalty for i, one in enumerate(settings) if one.repetition_penalty != 1}
        drawing = {i: one for i, one in enumerate(settings) if one.temperature > 0}
        self._drawing = list(drawing)
        self._temperatures = torch.tensor([[one.temperature] for one in drawing.values()], dtype=torch.float64)
        self._top_p = torch.tensor([[one.top_p] for one in drawing.values()], dtype=torch.float64)
        self._generators = [torch.Generator().manual_seed(one.seed) for one in drawing.values()]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The logits ``[n, vocabulary]`` of the next token after ``input_ids [n, s]``, or what is left of them."""
        if self._penalties or self._drawing:
            scores = scores.clone()
        for row, penalty in self._penalties.items():
            seen = input_ids[row, self._before[row] :].unique()
            scores[row, seen] = penalised(scores[row, seen], penalty)
        if self._drawing:
            drawn = self._drawn(scores[self._drawing])
            scores[self._drawing] = torch.full_like(scores[self._drawing], -torch.inf).scatter_(1, drawn[:, None], 0.0)
        return scores

    def _drawn(self, logits: Tensor) -> Tensor:
        points = torch.stack([torch.rand((), generator=one, dtype=torch.float64) for one in self._generators])
        at = [one.to(logits.device) for one in (self._temperatures, self._top_p, points[:, None])]
        logits = logits.double()
        return drawn_tokens((logits - logits.amax(-1, keepdim=True)) / at[0], at[1], at[2])  # finite at any T > 0


def penalised(logits: Tensor, penalty: float) -> Tensor:
    """CTRL's penalty on the logits of tokens that stand in the row already; above 1 it makes them less likely."""
    return torch.where(logits > 0, logits / penalty, logits * penalty)


def drawn_tokens(logits: Tensor, top_p: Tensor, points: Tensor) -> Tensor:
    """The token of each row at a point of its nucleus.

    Args:
        logits: float64 ``[n, vocabulary]``, divided by the temperature.
        top_p: float64 ``[n, 1]``, above 0.
        points: float64 ``[n, 1]`` in [0, 1).

    Returns:
        int64 ``[n]``: of the likeliest tokens whose probabilities come to ``top_p``, likeliest first, the one in whose
        part of their sum the point lies.
    """
    p, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    inside = p.cumsum(-1) - p < top_p
    sums = (p * inside).cumsum(-1)
    place = (sums <= points * sums[:, -1:]).sum(-1, keepdim=True).clamp(max=p.shape[-1] - 1)
    return order.gather(1, place)[:, 0]
