"""The sections of ``--help`` into which the many settings of a training are divided."""

from __future__ import annotations

from collections.abc import Collection

from lorabank.core.config import TrainConfig
from lorabank.core.settings import setting_names

FIRST = {"data": "Rows", "head": "Method", "r": "Adapter", "epochs": "Training"}
"""The setting that each section begins with; the others follow in the order of the class."""


def train_sections(left_out: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
    """Section title to the settings of `TrainConfig` in it.

    Args:
        left_out: Settings that the command does not take.
    """
    found: dict[str, tuple[str, ...]] = {}
    title = ""
    for name in setting_names(TrainConfig):
        title = FIRST.get(name, title)
        if name not in left_out:
            found[title] = (*found.get(title, ()), name)
    return found
