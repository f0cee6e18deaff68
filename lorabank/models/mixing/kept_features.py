"""Features of texts that are asked for again: the state, the task and the stage that ask change nothing in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Key = tuple[int, int, bytes]
"""Layer, maximum number of tokens, and digest of a text."""

FEATURE_BYTES = 1 << 28
"""Features that are kept, at most. When they are full new ones are not kept: states and stages ask for the same
texts in the same order, and giving up the oldest would lose each just before it is asked for."""

_ENTRY = 300
"""Bytes of an entry beside its numbers."""


class KeptFeatures:
    """Each text's features, by layer, up to `FEATURE_BYTES`."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Keep none of the texts so far."""
        self._kept: dict[Key, Rows] = {}
        self._free = FEATURE_BYTES

    def of(
        self,
        texts: Sequence[str],
        max_length: int,
        layers: Sequence[int],
        extract: Callable[[Sequence[str]], list[Rows]],
    ) -> list[Rows]:
        """Of each layer the features ``[n, width]`` of n texts.

        Args:
            texts: n texts, some of them equal or known.
            max_length: Tokens of a text; longer ones are cut.
            layers: Numbers of layers.
            extract: Computes them for the texts of which not all are kept, each once; also where there is no text.
        """
        keys = [(max_length, sha256(text.encode("utf-8", "surrogatepass")).digest()) for text in texts]
        new = {
            key: text
            for key, text in zip(keys, texts, strict=True)
            if any((layer, *key) not in self._kept for layer in layers)
        }
        if keys and not new:
            return [np.stack([self._kept[layer, *key] for key in keys]) for layer in layers]
        every = extract(list(new.values()))
        found: dict[Key, Rows] = {}
        for layer, rows in zip(layers, every, strict=True):
            found |= {(layer, *key): row for key, row in zip(new, rows, strict=True)}
        if len(new) < len(keys):
            wanted = [[(layer, *key) for key in keys] for layer in layers]
            every = [np.stack([found[at] if at in found else self._kept[at] for at in one]) for one in wanted]
        self._keep(found)
        return every

    def _keep(self, found: Mapping[Key, Rows]) -> None:
        for key, row in found.items():
            if key in self._kept:
                continue
            if self._free < row.nbytes + _ENTRY:
                break
            self._kept[key] = row.copy()  # a view would keep the rows beside it too
            self._free -= row.nbytes + _ENTRY
