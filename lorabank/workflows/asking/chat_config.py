"""Settings of a conversation."""

from __future__ import annotations

from dataclasses import dataclass

from lorabank.core.config import MAX_RESIDENT, SamplingConfig
from lorabank.core.settings import setting


@dataclass(frozen=True, kw_only=True)
class ChatConfig(SamplingConfig):
    """What answers in a conversation, and how."""

    composition: str | None = setting(None, "Composition that answers; default: the only one, or the last routed one.")
    task: str | None = setting(
        None, "Task whose adapter and prompt template answer (the task id is given); none: the bare base."
    )
    system: str | None = setting(
        None, "System prompt: the first message of the conversation in the base's chat template.", filled=True
    )
    max_new_tokens: int = setting(
        512, "Maximum number of new tokens of an answer, which may fill half of what the base takes.", ge=1, le=32768
    )
    seed: int = setting(
        0, "Seed of the draws; answer i of the conversation, from 0, draws with seed + i.", ge=0, lt=2**32
    )
    max_resident: str | None = setting(None, MAX_RESIDENT)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.")
