r"""SAPT (arXiv 2401.08295): one attention for all layers, from the text's input embeddings to a key of each state.

    q = LayerNorm(P_up silu(P_down e)),   w = softmax(q . k_k / sqrt(d))
    e_i = max over the text's tokens of entry i of their input embeddings

The paper learns each task's key and adapter together, and later aligns the attention with pseudo-samples of earlier
tasks; here adapters are stored and rows are kept, and the attention is fitted on them. P starts with drawn numbers, a
key as the mean query of the state's kept texts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from lorabank.algebra.states import StateStack
from lorabank.core.settings import setting
from lorabank.models.gates.base import GateMethod, drawn, unplaced
from lorabank.models.gates.texts import Read, TextFacts, TextGate, means_by_state, with_zero


@dataclass(frozen=True)
class Sapt(GateMethod):
    """One attention for all layers, from the input embeddings to a key of each state."""

    paper = "SAPT, arXiv 2401.08295"

    width: int = setting(100, "Width between the two projections of the query.", ge=1)

    def build(self, members: StateStack) -> SharedAttention:
        """A new attention, not placed yet."""
        return SharedAttention(members, self.width)


class SharedAttention(TextGate):
    """``down [width, d]``, ``up [d, width]`` and ``keys [K, d]``.

    Args:
        members: The states that compete, K of them.
        width: Between the projections.
    """

    reads: ClassVar[frozenset[Read]] = frozenset({"embedding"})

    def __init__(self, members: StateStack, width: int) -> None:
        super().__init__()
        self.down, self.up, self.keys = (unplaced(members) for _ in range(3))
        self._count, self._width = members.count, width

    def place(self, texts: TextFacts, of: Tensor) -> None:
        """Drawn projections, and keys where the kept texts' queries are."""
        assert texts.embedding is not None
        d = texts.embedding.shape[1]
        for name, parameter, shape in (("down", self.down, (self._width, d)), ("up", self.up, (d, self._width))):
            parameter.materialize(shape)
            parameter.copy_(drawn(shape[0] * shape[1], "sapt", name).view(shape) / math.sqrt(shape[1]))
        means = means_by_state(self.query(texts.embedding), of, self._count)
        self.keys.materialize(means.shape)
        self.keys.copy_(means)

    def query(self, embedding: Tensor) -> Tensor:
        """``[n, d]`` to ``[n, d]``."""
        hidden = F.silu(embedding.to(self.down.dtype) @ self.down.T)
        return F.layer_norm(hidden @ self.up.T, (len(self.up),))

    def weights(self, module: str, members: StateStack, texts: TextFacts) -> Tensor:
        """The same for every module, nothing for the zero adapter."""
        assert texts.embedding is not None
        scores = self.query(texts.embedding) @ self.keys.T / math.sqrt(self.keys.shape[1])
        return with_zero(scores.softmax(-1))
