"""Free text in any states of a model: of many tasks, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

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

    A pass that fails because the model does not keep rows apart is made again, one state after the other. No answer is
    delivered twice, and none before it is known that the model calls the adapters.

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
    measure_reading_on(runtime, len(texts))
    deliveries = [_Delivery(request) for request in requests]

    def ask(rows: NDArray[np.int64], enter: Enter) -> None:
        left = [place for place, i in enumerate(rows.tolist()) if deliveries[i].written is None]
        own = rows[left].tolist()
        check = cache(runtime.mixture.check_called)
        asked = [deliveries[i].request(check) for i in own]
        answerer.write(
            [texts[i] for i in own],
            [forms[i] for i in own],
            lambda batch: enter([left[place] for place in batch]),
            asked,
        )

    runtime.passes(plan, len(texts), ask)
    return [one.written for one in deliveries if one.written is not None]


def measure_reading_on(runtime: Runtime, count: int) -> None:
    """Find out whether prompts may share a batch, in no state: another batch's adapters would not fit the rows."""
    if count > 1:
        with runtime.mixture.bare():
            reads_on(runtime.base.model)


class _Delivery:
    """What was delivered of one answer.

    Args:
        asked: How the answer is generated, and who hears it.

    Attributes:
        written: The answer; None where it has not ended.
    """

    def __init__(self, asked: GenerationRequest) -> None:
        self.written: Written | None = None
        self._asked = asked
        self._heard = 0

    def request(self, check: Callable[[], None]) -> GenerationRequest:
        """The request for a pass, which may not be the first; ``check`` is called before anything is delivered."""
        begun, said = self._heard, 0

        def hear(piece: str) -> None:
            nonlocal said
            check()
            new = piece[max(0, begun - said) :]
            said += len(piece)
            if new and self._asked.hear is not None:
                self._heard += len(new)
                self._asked.hear(new)

        def done(written: Written) -> None:
            check()
            self.written = written
            if self._asked.done is not None:
                self._asked.done(written)

        return replace(self._asked, hear=hear if self._asked.hear else None, done=done)


def requests_of(config: SamplingConfig, numbers: Sequence[int]) -> list[GenerationRequest]:
    """How texts of some numbers in their call or file, from 0, are answered: each draws from a seed of its own."""
    return [GenerationRequest(replace(config, seed=config.seed + number)) for number in numbers]
