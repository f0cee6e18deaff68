"""What is told of a training before it begins: too few steps, and a tokenizer that hardly knows the rows' script."""

from __future__ import annotations

from dataclasses import replace

from lorabank.core.config import TrainConfig
from lorabank.data.loading import TaskData
from lorabank.models.bases.open_base import OpenBase
from lorabank.training.planning import planned_steps

FEW_STEPS = 50
POOR_FIT = 1.5
"""Tokens of a character; English costs about a quarter of one, and a script that is spelled in bytes two or three."""

_LOOKED_AT = 256
"""Rows whose characters and tokens are counted."""


def few_steps(rows: int, config: TrainConfig) -> str | None:
    """What to type where a run over so many rows has too few optimizer steps to learn much; else None."""
    steps = planned_steps(rows, config)
    if steps >= FEW_STEPS:
        return None
    counted = "1 optimizer step is very little" if steps == 1 else f"{steps} optimizer steps are few"
    told = f"{counted}, and a task is seldom learnt in fewer than {FEW_STEPS}"
    if config.max_steps is not None:
        return f"{told}: --max-steps {FEW_STEPS} or more"
    epochs = -(-FEW_STEPS // planned_steps(rows, replace(config, epochs=1.0)))
    longer = planned_steps(rows, replace(config, epochs=float(epochs)))
    smaller = {size: planned_steps(rows, replace(config, batch_size=size)) for size in range(1, config.batch_size)}
    enough = max((size for size, found in smaller.items() if found >= FEW_STEPS), default=None)
    batch = f", --batch-size {enough} gives {smaller[enough]}" if enough else ""
    return f"{told}: --epochs {epochs} gives {longer} steps{batch}"


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
