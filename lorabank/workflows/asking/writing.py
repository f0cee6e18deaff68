"""Free text in any states of a model: of many tasks, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lorabank.core.config import SamplingConfig
from lorabank.models.answering.base import AnswerForm
from lorabank.models.answering.generating import reads_on
from lorabank.models.answering.replies import GenerationRequest, Written
from lorabank.models.answering.text_answers import TextAnswerer
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.models.tasks.batches import Enter


def write(
    runtime: Runtime,
    texts: Sequence[str],
    plan: Plan,
    forms: Sequence[AnswerForm],
    requests: Sequence[GenerationRequest],
) -> list[Written]:
    """Let a language model answer texts, each in its own state, form and manner.

    Args:
        runtime: The model, a language model's.
        texts: n texts.
        plan: The states; with weights per text it has n rows.
        forms: How each text is asked.
        requests: How each answer is generated.

    Raises:
        ConfigError: An answer leaves no room for a prompt.
        DataError: A prompt has no tokens, or there is no room for its template.
        DivergedError: The model gives no finite probabilities.
    """
    answerer = runtime.answerer
    assert isinstance(answerer, TextAnswerer)
    if len(texts) > 1:
        with runtime.mixture.bare():  # measured in no state: the adapters of a batch would not fit its rows
            reads_on(runtime.base.model)
    found: dict[int, Written] = {}

    def ask(rows: NDArray[np.int64], enter: Enter) -> list[Written]:
        own = rows.tolist()
        return answerer.write([texts[i] for i in own], [forms[i] for i in own], enter, [requests[i] for i in own])

    for rows, written in runtime.passes(plan, len(texts), ask):
        found |= dict(zip(rows.tolist(), written, strict=True))
    return [found[i] for i in range(len(texts))]


def requests_of(config: SamplingConfig, count: int) -> list[GenerationRequest]:
    """How each of some answers of one call is generated: alike, but that each draws from a seed of its own."""
    return [GenerationRequest(replace(config, seed=config.seed + i)) for i in range(count)]
