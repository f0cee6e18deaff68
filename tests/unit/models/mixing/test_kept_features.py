"""Features that are kept: each is computed once, and counted once."""

from __future__ import annotations

import numpy as np
import pytest

from lorabank.models.mixing import kept_features
from lorabank.models.mixing.kept_features import KeptFeatures


def test_a_layer_that_is_asked_for_again_beside_another_one_takes_no_more_room(monkeypatch) -> None:
    monkeypatch.setattr(kept_features, "FEATURE_BYTES", 3 * (4 * 2 + kept_features._ENTRY))  # three entries
    kept, asked = KeptFeatures(), []

    def of(text: str, *layers: int) -> list[float]:
        def extract(new):
            asked.extend((one, layers) for one in new)
            return [np.full((len(new), 2), layer, np.float32) for layer in layers]

        return [float(rows[0, 0]) for rows in kept.of([text], 8, layers, extract)]

    assert of("a", 1) == [1]
    assert of("a", 1, 2) == [1, 2]
    assert of("b", 1) == [1]
    assert asked == [("a", (1,)), ("a", (1, 2)), ("b", (1,))]
    assert (of("a", 2, 1), of("b", 1)) == ([2, 1], [1])
    assert len(asked) == 3  # all three are kept


@pytest.mark.parametrize("texts", [[], ["a", "b", "a"]])
def test_rows_stand_in_the_order_of_the_texts(texts: list[str]) -> None:
    def extract(new):
        assert list(new) == list(dict.fromkeys(texts))
        return [np.array([[ord(text)] for text in new], np.float32).reshape(len(new), 1)]

    (rows,) = KeptFeatures().of(texts, 8, [0], extract)
    assert rows[:, 0].tolist() == [ord(text) for text in texts]
