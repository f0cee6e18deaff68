"""The bank's model as EleutherAI's lm-evaluation-harness asks it: the runtime itself, with the mixture active.

It needs the package ``lm_eval``; `lorabank.workflows.asking.harness` imports it where that is installed. Texts are
encoded as the harness's own model of transformers does it: a context and its continuation together, special tokens as
the tokenizer adds them, unless a text begins with the begin token already; what is too long loses its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorabank.core.config import SamplingConfig
from lorabank.core.errors import DataError, IncompatibleError
from lorabank.models.answering.continuations import continuation_log_likelihoods
from lorabank.models.answering.generating import write
from lorabank.models.answering.replies import GenerationRequest, Written
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.models.tasks.batches import Enter
from lorabank.workflows.asking.writing import measure_reading_on

TemplateLM: Any = import_module("lm_eval.api.model").TemplateLM
_HARNESS: Any = import_module("lm_eval.utils")

_GENERATED = 256
"""Tokens of a generated text where a task does not say how many: the harness's own default."""

_PLAIN = {"do_sample": False, "num_beams": 1}
"""Greedy decoding, which alone is asked for."""


class BankModel(TemplateLM):  # type: ignore[misc]  # it is an extra, and may not be there
    """A causal language model in the state of a composition.

    Args:
        runtime: The base with its adapters.
        plan: Gives the state for some texts.
        limit: Tokens that the model takes.
    """

    backend = "causal"

    def __init__(self, runtime: Runtime, plan: Callable[[Sequence[str]], Plan], limit: int) -> None:
        super().__init__()
        self.tokenizer = runtime.base.tokenizer
        self.max_length = limit
        self._runtime, self._plan = runtime, plan

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: the token that begins one, or else the one that ends one."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(str(self.tokenizer.decode([self.prefix_token_id])))
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Of each continuation its log-likelihood behind its context, and whether it is the greedy one."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        prompts, continuations = [], []
        for (_, continuation), prompt, more in requests:
            if len(more) > self.max_length:
                raise DataError(
                    f"a continuation has {len(more)} tokens, and the model takes {self.max_length} in all: "
                    f"{continuation[:80]!r}",
                    hint="leave the task out",
                    unchanged="nothing was computed",
                )
            prompts.append(prompt[-(self.max_length + 1 - len(more)) :])
            continuations.append(more)
        texts = [context or continuation for (context, continuation), _, _ in requests]
        sums, greedy = self._scored(texts, prompts, continuations)
        return list(zip(sums.tolist(), greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Of each text the log-likelihood of all its tokens, in windows that do not overlap."""
        texts: list[str] = []
        windows: list[tuple[list[int], list[int]]] = []
        sizes = []
        for (text,) in [request.args for request in requests]:
            own = _HARNESS.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            before = len(windows)
            windows += map(_HARNESS.make_disjoint_window, own)
            sizes.append(len(windows) - before)
            texts += [text] * sizes[-1]
        sums, _ = self._scored(texts, [one for one, _ in windows], [more for _, more in windows])
        ends = np.cumsum([0, *sizes])
        return [float(sums[start:end].sum()) for start, end in pairwise(ends)]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """The greedy continuation of each context, up to the first of its stops."""
        asked = [(context, self._sampling(dict(settings))) for context, settings in (one.args for one in requests)]
        said = [""] * len(asked)
        prompts = [self.tok_encode(text)[-(self.max_length - own.max_new_tokens) :] for text, own in asked]

        def ask(rows: NDArray[np.int64], enter: Enter) -> list[Written]:
            return write(
                self._runtime.base.model,
                self.tokenizer,
                [prompts[i] for i in rows],
                [GenerationRequest(asked[i][1]) for i in rows],
                batch_size=self._runtime.batch_size,
                enter=enter,
                strip=False,
            )

        measure_reading_on(self._runtime, len(asked))
        plan = self._plan([context for context, _ in asked])
        for rows, found in self._runtime.passes(plan, len(asked), ask):
            for i, one in zip(rows.tolist(), found, strict=True):
                said[i] = one.text
        return said

    def _sampling(self, settings: dict[str, Any]) -> SamplingConfig:
        """How many tokens a request wants, and the texts that end it.

        Raises:
            IncompatibleError: It wants another decoding than the greedy one, or leaves no room for a prompt.
        """
        other = [name for name, value in _PLAIN.items() if settings.get(name, value) not in (value, None)]
        if other:
            raise IncompatibleError(
                f"a task of the harness asks for {other[0]} = {settings[other[0]]}, and the bank decodes greedily",
                hint="leave the task out",
                unchanged="nothing was computed",
            )
        length = int(settings.get("max_gen_toks", _GENERATED))
        if length >= self.max_length:
            raise IncompatibleError(
                f"a task of the harness asks for {length} tokens, and the model takes {self.max_length} in all",
                hint="leave the task out",
                unchanged="nothing was computed",
            )
        until = settings.get("until") or ()
        stops = (until,) if isinstance(until, str) else until
        return SamplingConfig(max_new_tokens=length, stop=tuple(stop for stop in stops if stop))

    def _scored(
        self, texts: Sequence[str], prompts: Sequence[list[int]], continuations: Sequence[list[int]]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        sums, greedy = np.zeros(len(prompts)), np.zeros(len(prompts), np.bool_)

        def ask(rows: NDArray[np.int64], enter: Enter) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
            return continuation_log_likelihoods(
                self._runtime.base.model,
                self.tokenizer,
                [prompts[i] for i in rows],
                [continuations[i] for i in rows],
                batch_size=self._runtime.batch_size,
                enter=enter,
            )

        for rows, found in self._runtime.passes(self._plan(texts), len(prompts), ask):
            sums[rows], greedy[rows] = found
        return sums, greedy
