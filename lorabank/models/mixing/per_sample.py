r"""A batch in which every sample has its own weights over adapters, each sample computed with its own adapters only.

For stacked factors ``A [R, d_in]`` and ``B [d_out, R]`` of a module, and ``rows_i = w_i[owner] scale``, sample i gets

    y_i = W x_i + B diag(rows_i) A x_i  (+ shift_i * (W x_i), shift_i = sum_k w_ik (g_k - 1), where one has a row gain)

where most of ``rows_i`` is 0: a routed sample needs the r rows of its state (one adapter, or a sum of several), the
batch the U rows that any sample needs. Three forms give the same y, for M tokens in n samples and d = d_in + d_out:

    masked    A_U for all tokens, times rows_i, then B_U           2 M U d FLOP        one pair of GEMMs
    segments  neighbours of one state together, their rows alone   2 sum_g M_g r_g d   a pair for each run
    stacked   A[index_i] and B[:, index_i] as [n, r, .]            2 M r d             one pair of batched GEMMs and
                                                                                       n r d values copied

`Routes.form` takes the cheapest by this count: few tokens (decoding) or few rows give ``masked``, few runs with many
tokens ``segments``, many states with many tokens ``stacked``. It is asked once for a batch and a number of tokens, not
for each module: modules of one shape whose rows belong to the same adapters share one `Routes`. All forms add onto W x
in place. Which part of a module's input is which sample's is its `Place`; a batch of one state needs none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from lorabank.algebra.stack import StackedFactors
from lorabank.models.mixing.places import FIRST, ByRows, Place
from lorabank.models.mixing.reading import LINEAR, Reads

LAUNCH = 0.6e6
"""What one more tensor operation costs, in FLOP of a GEMM: a few microseconds."""

COPY = 40.0
"""What gathering one float costs, in FLOP of a GEMM: written once, read twice."""

Index = slice | Tensor
"""Rows of a stack: a view of it where they are neighbours."""


@dataclass(frozen=True)
class Masked:
    """``rows [n, U]`` over the rows ``index`` of the stack."""

    index: Index
    rows: Tensor


@dataclass(frozen=True)
class Segments:
    """Runs of neighbouring samples ``[start, stop)`` of one state: its rows of the stack and their weights ``[r]``."""

    runs: tuple[tuple[int, int, Index, Tensor], ...]


@dataclass(frozen=True)
class Stacked:
    """Every sample's rows of the stack, ``index [n, r]`` int64, and their weights ``[n, r]``, 0 where it has fewer."""

    index: Tensor
    rows: Tensor


Form = Masked | Segments | Stacked


class Routes:
    """A batch's weights over the rows of modules that have the same adapters.

    Args:
        weights: ``[n, K]`` over adapters, one row per sample; samples that are all in one state count as one.
        like: The factors of one of the modules.
    """

    def __init__(self, weights: Tensor, like: StackedFactors) -> None:
        self._device, self._dtype = like.A.device, like.A.dtype
        self._width = like.A.shape[1] + like.B.shape[0]
        if alike(weights):
            weights = weights[:1]
        self.weights = weights
        self.rows = weights.cpu().double()[:, like.owner.cpu()] * like.scale.cpu().double()
        self._forms: dict[int, Form] = {}

    @cached_property
    def used(self) -> Tensor:
        """The rows ``[U]`` that any sample needs."""
        return (self.rows != 0).any(0).nonzero().flatten()

    @cached_property
    def looked_up(self) -> Masked:
        """The form of a module that looks rows of A^T up, where reading costs nothing and copying A much."""
        return self.masked()

    def form(self, tokens: int) -> Form:
        """The cheapest form for a pass with so many tokens per sample."""
        if tokens not in self._forms:
            costs = self.costs(tokens)
            make: Callable[[], Form] = getattr(self, min(costs, key=costs.__getitem__))
            self._forms[tokens] = make()
        return self._forms[tokens]

    def costs(self, tokens: int) -> dict[str, float]:
        """Form, named like the method that makes it, to its cost on one module, in FLOP of a GEMM."""
        n, d = self.rows.shape[0], self._width
        ranks = (self.rows != 0).sum(1)
        widest = int(ranks.max()) if n else 0
        return {
            "masked": 2.0 * n * tokens * len(self.used) * d + 3 * LAUNCH,
            "segments": 2.0 * tokens * int(ranks.sum()) * d + 3 * LAUNCH * len(self._runs),
            "stacked": 2.0 * n * tokens * widest * d + n * widest * d * COPY + 5 * LAUNCH,
        }

    def masked(self) -> Masked:
        """All rows that are used, for all tokens."""
        return Masked(self._index(self.used), self._on_device(self.rows[:, self.used]))

    def segments(self) -> Segments:
        """One run of samples after the other."""
        found = []
        for start, stop in self._runs:
            own = self.rows[start].nonzero().flatten()
            found.append((start, stop, self._index(own), self._on_device(self.rows[start, own])))
        return Segments(tuple(found))

    def stacked(self) -> Stacked:
        """Every sample's own rows; shorter ones are filled up with weight 0."""
        needed = self.rows != 0
        widest = int(needed.sum(1).max())
        index = needed.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :widest]
        return Stacked(index.to(self._device), self._on_device(self.rows.gather(1, index)))

    @cached_property
    def _runs(self) -> list[tuple[int, int]]:
        """Runs of samples with equal weights, those that need nothing left out."""
        n = self.rows.shape[0]
        changes = (self.rows[1:] != self.rows[:-1]).any(1).nonzero().flatten() + 1
        bounds = [0, *changes.tolist(), n]
        return [(start, stop) for start, stop in pairwise(bounds) if bool((self.rows[start] != 0).any())]

    def _index(self, rows: Tensor) -> Index:
        """A slice where the rows are neighbours: then nothing is copied."""
        if not len(rows):
            return slice(0, 0)
        first, last = int(rows[0]), int(rows[-1])
        return slice(first, last + 1) if last - first + 1 == len(rows) else rows.to(self._device)

    def _on_device(self, rows: Tensor) -> Tensor:
        return rows.to(self._device, self._dtype)


def alike(weights: Tensor) -> bool:
    """Whether all samples of ``weights [n, K]`` are in one state."""
    return bool((weights == weights[:1]).all())


def add_gain(out: Tensor, shift: Tensor, bias: Tensor | None) -> None:
    """``out += shift * (out - bias)``, in place: the rows of ``W x + bias`` with a gain of ``1 + shift``."""
    out.addcmul_(shift, out if bias is None else out - bias)


class PerSample:
    """One module's adapters in a batch of routes.

    Rows that are not neighbours are copied out of the stack: by ``masked`` once for the batch (each row once), by the
    others in each pass.

    Args:
        routes: The batch.
        factors: The module's adapters.
        place: Where the samples are in the module's input; None where that is unknown.
        reads: How the module reads its input.
    """

    def __init__(
        self, routes: Routes, factors: StackedFactors, place: Place | None = FIRST, reads: Reads = LINEAR
    ) -> None:
        self._routes = routes
        self._place = place
        self._factors = factors
        self._reads = reads
        self._shift = factors.shift(routes.weights)
        self._kept: tuple[Tensor, Tensor] | None = None

    @property
    def used(self) -> Tensor:
        """The rows ``[U]`` of the stack that any sample needs."""
        return self._routes.used

    def add(self, out: Tensor, x: Tensor) -> Tensor:
        """Add every sample's adapters.

        Args:
            out: ``W x + b [..., d_out]``, changed in place.
            x: ``[..., d_in]``.

        Returns:
            ``out``.

        Raises:
            UnplacedError: The samples are in several states, and the input is not known to be made of n parts.
        """
        if not len(self.used):
            return out
        n, A, B = self._routes.rows.shape[0], self._factors.A, self._factors.B.T
        batch = ByRows(self._place, x, out, n, "adapters were chosen for each row")
        inputs, sums = batch.inputs, batch.sums
        if self._shift is not None:
            add_gain(sums, self._shift.to(sums.dtype).unsqueeze(1), self._reads.bias)
        reads = self._reads
        form = self._routes.looked_up if reads.indexed else self._routes.form(inputs.shape[1])
        if isinstance(form, Masked):
            if self._kept is None:
                self._kept = A[form.index], B[form.index]
            h = reads.down(inputs, self._kept[0]).mul_(form.rows.unsqueeze(1))
            sums.flatten(0, 1).addmm_(h.flatten(0, 1), self._kept[1])
        elif isinstance(form, Segments):
            for start, stop, index, rows in form.runs:
                h = reads.down(inputs[start:stop].flatten(0, 1), A[index]).mul_(rows)
                sums[start:stop].flatten(0, 1).addmm_(h, B[index])
        else:
            h = torch.bmm(inputs, A[form.index].mT).mul_(form.rows.unsqueeze(1))
            sums.baddbmm_(h, B[form.index])
        batch.put_back()
        return out
