"""The score of each row of a cell, which a paired test needs: a bit of each row that is right or wrong."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
import numpy.typing as npt

from lorabank.core.records import EvaluationRecord

KEY = "rows"
"""Where a cell's detail holds them."""


def row_detail(scores: npt.NDArray[np.float64]) -> dict[str, Any]:
    """What a cell keeps of n scores, as plain values; nothing of scores between right and wrong."""
    if not np.isin(scores, (0, 1)).all():
        return {}
    return {KEY: base64.b64encode(np.packbits(scores.astype(bool)).tobytes()).decode()}


def stored_rows(record: EvaluationRecord) -> npt.NDArray[np.float64] | None:
    """The scores ``[n]`` that a cell keeps; None where it keeps none, or others than its value is made of."""
    try:
        kept = base64.b64decode(record.detail.get(KEY, ""), validate=True)
    except (binascii.Error, TypeError, ValueError):
        return None
    if len(kept) != -(-record.n // 8) or not kept:
        return None
    scores = np.unpackbits(np.frombuffer(kept, np.uint8), count=record.n).astype(np.float64)
    return scores if abs(scores.mean() - record.value) < 1e-9 else None
