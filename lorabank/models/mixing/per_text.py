r"""A batch in which every text has its own weight for every row of a module's adapters, given by a gate.

For stacked factors ``A [R, d_in]``, ``B [d_out, R]`` and weights ``w_i [R]`` of text i, scaling included,

    y_i = W x_i + b + B diag(w_i) A x_i  (+ shift_i * (W x_i), shift_i = sum_k a_ik (g_k - 1), where there are gains)

A gate's weights are rarely 0, so all rows are computed for all tokens, in one pair of products. Gradients reach the
weights; the rest is as in `lorabank.models.mixing.per_sample`, whose routed texts need few rows each.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lorabank.algebra.stack import StackedFactors
from lorabank.models.gates.texts import TextWeights
from lorabank.models.mixing.places import ByRows, Place
from lorabank.models.mixing.reading import LINEAR, Reads


class PerText:
    """One module's adapters in a batch of texts.

    Args:
        weights: Of n texts.
        factors: The module's adapters.
        place: Where the texts are in the module's input; None where that is unknown.
        reads: How the module reads its input.
    """

    def __init__(
        self, weights: TextWeights, factors: StackedFactors, place: Place | None, reads: Reads = LINEAR
    ) -> None:
        self._rows = weights.rows.to(factors.A.dtype).unsqueeze(1)
        self._shift = factors.shift(weights.adapters)
        self._factors, self._place, self._reads = factors, place, reads

    def add(self, out: Tensor, x: Tensor) -> Tensor:
        """Add every text's adapters.

        Args:
            out: ``W x + b [..., d_out]``, changed in place.
            x: ``[..., d_in]``.

        Returns:
            ``out``.

        Raises:
            UnplacedError: There are several texts, and the input is not known to be made of n parts.
        """
        batch = ByRows(self._place, x, out, len(self._rows), "weights were chosen for each text")
        inputs, sums = batch.inputs, batch.sums
        added = F.linear(self._reads.down(inputs, self._factors.A) * self._rows, self._factors.B)
        if self._shift is not None:
            bias = self._reads.bias
            plain = sums if bias is None else sums - bias
            added = added + self._shift.to(sums.dtype).unsqueeze(1) * plain
        sums.add_(added)
        batch.put_back()
        return out
