"""Free text of many questions in one batch that others join: every row in its own sum of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from lorabank.models.answering.base import AnswerForm
from lorabank.models.answering.replies import GenerationRequest
from lorabank.models.answering.rolling import Rolling, rolls
from lorabank.models.answering.text_answers import TextAnswerer
from lorabank.models.mixing.runtime import Runtime

Weights = NDArray[np.float32]
"""Of one text over the bank's adapters, float32 ``[K]``."""


def runs(runtime: Runtime, weights: Weights) -> bool:
    """Whether a text in such a state can be a row of a batch that others join.

    Args:
        runtime: The model.
        weights: The text's state.
    """
    if not runtime.stack.all_fit or runtime.alone.among(weights):
        return False
    with runtime.mixture.bare():
        rolling = rolls(runtime.base.model)
    return rolling and runtime.keeps_apart


class RunningBatch:
    """A batch that runs.

    Args:
        runtime: The model, which `runs`.
    """

    def __init__(self, runtime: Runtime) -> None:
        assert isinstance(runtime.answerer, TextAnswerer)
        self._runtime, self._answerer = runtime, runtime.answerer
        base = runtime.base
        self._rolling = Rolling(base.model, base.tokenizer, self._enter, cache(runtime.mixture.check_called))

    def __len__(self) -> int:
        return len(self._rolling)

    def prompt(self, text: str, form: AnswerForm, request: GenerationRequest) -> list[int]:
        """The token ids of a question, as `lorabank.workflows.asking.writing.write` asks it.

        Raises:
            ConfigError: The answer leaves no room for a prompt.
            DataError: The prompt has no tokens, or there is no room for its template.
        """
        return self._answerer.prompts([text], [form], [request])[0]

    def join(
        self, prompts: Sequence[list[int]], requests: Sequence[GenerationRequest], weights: Sequence[Weights]
    ) -> None:
        """Begin to answer prompts beside those that are answered already."""
        self._rolling.join(prompts, requests, list(weights))

    def step(self) -> None:
        """Give every answer its next token."""
        self._rolling.step()

    def _enter(self, weights: Sequence[Weights]) -> None:
        self._runtime.mixture.per_sample(self._runtime.stack.place(torch.from_numpy(np.stack(list(weights)))))
