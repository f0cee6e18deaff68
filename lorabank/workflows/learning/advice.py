"""What is said of a task's rows before a training: whether the tokenizer knows their script."""

from __future__ import annotations

from lorabank.data.loading import TaskData
from lorabank.models.bases.open_base import OpenBase

POOR_FIT = 1.5
"""Tokens of a character; English costs about a quarter of one, and a script that is spelled in bytes two or three."""

_LOOKED_AT = 256
"""Rows whose characters and tokens are counted."""


def characters_per_token(base: OpenBase, data: TaskData) -> float:
    """Of the texts and, where they are free, the answers, by the base's tokenizer without special tokens."""
    rows = data.train
    texts = [*rows.texts[:_LOOKED_AT], *(rows.labels[:_LOOKED_AT] if rows.free else ())]
    encoded = base.tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return sum(map(len, texts)) / max(1, sum(map(len, encoded)))


def poor_fit(per_token: float) -> str | None:
    """What is told where the rows' characters cost many tokens; else None."""
    if per_token * POOR_FIT >= 1:
        return None
    return (
        f"a character of these rows costs {1 / per_token:.1f} tokens, since the base's tokenizer hardly knows their "
        "script: a base made for it learns them better"
    )
