"""The tables of named parts: a new penalty, strategy or composition is one file and one line here.

Values are ``"module:attribute"`` strings, so that ``--help`` and completion list the names without importing torch.
Other packages add to a table by an entry point in the group ``lorabank.strategies``, ``lorabank.penalties`` or
``lorabank.composers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from lorabank.core.config import nearest
from lorabank.core.errors import ConfigError

TASK_TYPES: dict[str, str] = {
    "SEQ_CLS": "lorabank.models.tasks.classification:Classification",
    "CAUSAL_LM": "lorabank.models.tasks.causal_lm:CausalLM",
    "SEQ_2_SEQ_LM": "lorabank.models.tasks.seq2seq_lm:Seq2SeqLM",
}

STRATEGIES: dict[str, str] = {
    "olora": "lorabank.training.strategies.presets:OLORA",
    "olora-projected": "lorabank.training.strategies.projected:PROJECTED",
    "inclora": "lorabank.training.strategies.presets:INCLORA",
    "nlora": "lorabank.training.strategies.presets:NLORA",
    "inflora": "lorabank.training.strategies.inflora:INFLORA",
    "amlora": "lorabank.training.strategies.amlora:AMLORA",
    "isolated": "lorabank.training.strategies.presets:ISOLATED",
    "seqlora": "lorabank.training.strategies.presets:SEQLORA",
    "ewc": "lorabank.training.strategies.ewc:EWC",
    "replay": "lorabank.training.strategies.replay:REPLAY",
    "joint": "lorabank.training.strategies.replay:JOINT",
}

PENALTIES: dict[str, str] = {
    "orthogonal": "lorabank.training.penalties.orthogonal:Orthogonal",
    "orthogonal-normalized": "lorabank.training.penalties.orthogonal:OrthogonalNormalized",
    "frobenius": "lorabank.training.penalties.frobenius:Frobenius",
    "l1": "lorabank.training.penalties.l1:L1",
    "ewc": "lorabank.training.penalties.ewc:EWC",
    "norm": "lorabank.training.penalties.norm:Norm",
}

COMPOSERS: dict[str, str] = {
    "manual": "lorabank.compose.weighted:Weighted",
    "attention": "lorabank.compose.attention:Attention",
    "prototype": "lorabank.compose.prototype:Prototype",
}


_PLURALS = {"strategy": "strategies", "penalty": "penalties"}


def load(table: Mapping[str, str], name: str, what: str) -> Any:
    """The object behind a name of a table.

    Args:
        table: One of the tables above.
        name: A key of the table, or an entry point of its group.
        what: What the table holds, in the singular, for the message.

    Raises:
        ConfigError: If there is no such name; the nearest one is proposed.
    """
    if name in table:
        return _attribute(table[name])
    from importlib.metadata import entry_points

    found = {point.name: point for point in entry_points(group=f"lorabank.{_PLURALS.get(what, f'{what}s')}")}
    if name in found:
        return found[name].load()
    known = [*table, *found]
    raise ConfigError(
        f"there is no {what} {name!r}.{nearest(name, known)}",
        hint=f"choose one of: {', '.join(known)}",
        unchanged="nothing was changed",
    )


def _attribute(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)
