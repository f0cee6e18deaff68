"""What a router is asked: texts, and features of the frozen base, computed when it looks at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Layers = Sequence[int]


class Query:
    """Texts that are to be routed.

    Args:
        texts: n texts as they are in the rows, without a prompt template.
        features: Gives of each layer their features, [n, width], all in one pass; see `Runtime.layer_features`.
    """

    def __init__(self, texts: Sequence[str], features: Callable[[Layers], list[NDArray[np.float32]]]) -> None:
        self.texts = texts
        self._features = features

    def __len__(self) -> int:
        return len(self.texts)

    def features(self, layers: Layers) -> list[NDArray[np.float32]]:
        """Of each layer float32 [n, width]; the layer `LAST` is the last hidden state."""
        return self._features(layers)
