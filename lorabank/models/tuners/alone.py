"""Adapters that answer alone among those that can be summed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lorabank.algebra.factors import DenseDelta
from lorabank.core.errors import IncompatibleError

BaseWeight = Callable[[str], Tensor]
"""Module name to the untouched base's weight ``[d_out, d_in]``."""


class AloneAdapters:
    """Those of a stack's adapters that have no factors; the delta weights of the last one asked for stay in memory.

    Args:
        names: All adapters of the stack, in the order of weights.
        read: Adapter of no factors to what reads its delta weights.
        weight: The base's weights.
    """

    def __init__(
        self, names: Sequence[str], read: Mapping[str, Callable[[BaseWeight], DenseDelta]], weight: BaseWeight
    ) -> None:
        self._names = tuple(names)
        self._columns = np.array([name in read for name in names], np.bool_)
        self._delta = lru_cache(maxsize=1)(lambda name: read[name](weight))

    def among(self, weights: NDArray[np.float32]) -> bool:
        """Whether one of them counts in ``weights [K]``."""
        return bool(weights[self._columns].any())

    def delta(self, weights: NDArray[np.float32]) -> DenseDelta:
        """The delta weights of the one that counts in ``weights [K]``.

        Raises:
            IncompatibleError: It is part of a sum.
        """
        counts = np.flatnonzero(weights)
        if len(counts) > 1 or weights[counts[0]] != 1:
            raise IncompatibleError(
                "a tuner of PEFT answers alone, and a sum cannot hold it", unchanged="nothing was computed"
            )
        return self._delta(self._names[int(counts[0])])

    def apart(
        self, weights: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> tuple[list[tuple[NDArray[np.float32], NDArray[np.int64]]], NDArray[np.float32], NDArray[np.int64]]:
        """The rows in which one of them counts, by their state, and the others.

        Args:
            weights: ``[n, K]``.
            rows: Their n numbers.

        Returns:
            Each such state ``[K]`` with its rows; the others' weights ``[m, K]``, and their numbers.
        """
        own = weights[:, self._columns].any(1)
        states, which = np.unique(weights[own], axis=0, return_inverse=True)
        groups = [(state, rows[own][which.reshape(-1) == k]) for k, state in enumerate(states)]
        return groups, weights[~own], rows[~own]
