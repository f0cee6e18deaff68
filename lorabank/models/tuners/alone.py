"""Adapters that answer alone among those that can be summed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lorabank.algebra.factors import DenseDelta
from lorabank.core.errors import IncompatibleError
from lorabank.models.tuners.hydra import HYDRA, HydraFactors, hydra_factors
from lorabank.models.tuners.library import delta_weights
from lorabank.models.tuners.state import TunerState

BaseWeight = Callable[[str], Tensor]
"""Module name to the untouched base's weight ``[d_out, d_in]``."""

Alone = DenseDelta | Mapping[str, HydraFactors]
"""How an adapter answers alone: by delta weights of full rank, or by what each site adds to every token."""


def answering(state: TunerState, weight: BaseWeight) -> Alone:
    """A stored adapter that has no factors, ready to answer.

    Args:
        state: The adapter.
        weight: The base's weights, which delta weights follow from.

    Raises:
        DataError: The tensors are not exactly those of the config.
    """
    return hydra_factors(state) if state.config["peft_type"] == HYDRA else delta_weights(state, weight)


class AloneAdapters:
    """Those of a stack's adapters that have no factors; the last one asked for stays in memory.

    Args:
        names: All adapters of the stack, in the order of weights.
        read: Adapter of no factors to what reads it.
        weight: The base's weights.
    """

    def __init__(
        self, names: Sequence[str], read: Mapping[str, Callable[[BaseWeight], Alone]], weight: BaseWeight
    ) -> None:
        self._names = tuple(names)
        self._columns = np.array([name in read for name in names], np.bool_)
        self._read = lru_cache(maxsize=1)(lambda name: read[name](weight))

    def among(self, weights: NDArray[np.float32]) -> bool:
        """Whether one of them counts in ``weights [K]``."""
        return bool(weights[self._columns].any())

    def adapter(self, weights: NDArray[np.float32]) -> Alone:
        """The one that counts in ``weights [K]``.

        Raises:
            IncompatibleError: It is part of a sum.
        """
        counts = np.flatnonzero(weights)
        if len(counts) > 1 or weights[counts[0]] != 1:
            raise IncompatibleError(
                "an adapter that has no factors A and B of its own answers alone, and a sum cannot hold it",
                unchanged="nothing was computed",
            )
        return self._read(self._names[int(counts[0])])

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
