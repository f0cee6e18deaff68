"""The answers of a batch while their tokens come: their text, where each ends, and who hears it as it grows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lorabank.core.config import SamplingConfig

_HALF = "\ufffd"
"""What a decoder writes for the beginning of a character whose other bytes are in the next token."""


@dataclass(frozen=True)
class Written:
    """A generated answer.

    Attributes:
        text: Without special tokens and stop texts.
        prompt_tokens: Tokens of its prompt.
        tokens: Tokens that were generated, without an end token.
        finish: ``"stop"`` at an end token or a stop text, ``"length"`` at the maximum number of tokens, ``"ended"``
            where the asker ended it.
    """

    text: str
    prompt_tokens: int
    tokens: int
    finish: Literal["stop", "length", "ended"]


@dataclass(frozen=True)
class GenerationRequest:
    """How one answer is generated.

    Attributes:
        sampling: How its tokens are chosen, and where it ends.
        hear: Called with each further piece of its text as soon as it is certain; all pieces together are the text.
        done: Called with the whole answer when it has ended, also where others of its batch have not.
        over: Asked after each token whether the answer shall end there.
    """

    sampling: SamplingConfig
    hear: Callable[[str], None] | None = None
    done: Callable[[Written], None] | None = None
    over: Callable[[], bool] | None = None


class Reply:
    """One answer.

    Args:
        tokenizer: Decodes it.
        request: How it is generated.
        ends: Tokens that end an answer.
        prompt_tokens: Tokens of its prompt.
        strip: Take outer blanks away.

    Attributes:
        ids: Its tokens so far, without an end token.
        finite: Whether the model gave finite probabilities for each of them.
        finish: Why it has ended; None while it has not.
    """

    def __init__(
        self,
        tokenizer: Any,
        request: GenerationRequest,
        ends: Collection[int],
        prompt_tokens: int,
        *,
        strip: bool = True,
    ) -> None:
        self.ids: list[int] = []
        self.finite = True
        self.finish: Literal["stop", "length", "ended"] | None = None
        self._tokenizer, self._request, self._ends, self._strip = tokenizer, request, ends, strip
        self._prompt_tokens = prompt_tokens
        self._grows = request.hear is not None or bool(request.sampling.stop)
        self._text = ""
        self._first, self._read = 0, 0
        self._heard = 0

    def add(self, token: int, *, finite: bool) -> bool:
        """Take the next token, unless the answer has ended; whether it has."""
        if self.finish is not None:
            return True
        sampling = self._request.sampling
        self.finite = finite
        if token in self._ends or not finite:
            self.finish = "stop"
        else:
            self.ids.append(token)
            if len(self.ids) >= sampling.max_new_tokens:
                self.finish = "length"
            elif self._request.over is not None and self._request.over():
                self.finish = "ended"
        self._pass_on()
        return self.finish is not None

    def end(self, finish: Literal["stop", "length", "ended"]) -> None:
        """End an answer whose last token does not say that it is the last one; nothing where it has ended."""
        if self.finish is None:
            self.finish = finish
            self._pass_on()

    def _pass_on(self) -> None:
        if self._grows:
            self._grow()
        if self.finish is not None and self.finite and self._request.done is not None:
            self._request.done(self.written())

    def written(self) -> Written:
        """The answer as it is."""
        text = self._text if self._grows else decoded(self._tokenizer, self.ids)
        return Written(
            text.strip() if self._strip else text, self._prompt_tokens, len(self.ids), self.finish or "length"
        )

    def _grow(self) -> None:
        """Decode what is new, a few tokens back since tokens are written otherwise at the beginning of a text."""
        before = decoded(self._tokenizer, self.ids[self._first : self._read])
        now = decoded(self._tokenizer, self.ids[self._first :])
        whole = self.finish is not None or not now.endswith(_HALF)
        if whole and len(now) > len(before):
            self._first, self._read = self._read, len(self.ids)
            self._text += now[len(before) :]
            self._end_at_stop()
        if self._request.hear is not None:
            self._tell(self._request.hear)

    def _end_at_stop(self) -> None:
        """Cut the text before the first stop text, if it has one."""
        places = [place for stop in self._request.sampling.stop if (place := self._text.find(stop)) >= 0]
        if places:
            self._text = self._text[: min(places)]
            self.finish = "stop"

    def _tell(self, hear: Callable[[str], None]) -> None:
        """Pass on what is certain: neither the beginning of a stop text nor blanks that may be the last ones."""
        begun = 0 if self.finish is not None else _begun(self._text, self._request.sampling.stop)
        text = self._text[: len(self._text) - begun]
        if self._strip:
            text = text.strip()
        if len(text) > self._heard:
            hear(text[self._heard :])
            self._heard = len(text)


def _begun(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of a text with which a stop text may begin."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    sizes = range(min(longest, len(text)), 0, -1)
    return next((size for size in sizes if any(stop.startswith(text[-size:]) for stop in stops)), 0)


class Following:
    """A stopping criterion of transformers that hands each new token to its row's reply.

    Args:
        replies: Those of n rows.
        finite: Gives whether the probabilities of the newest tokens are finite, bool ``[n]``.
    """

    def __init__(self, replies: Sequence[Reply], finite: Callable[[], Tensor]) -> None:
        self._replies = replies
        self._finite = finite

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Which rows have ended, bool ``[n]``, with ``input_ids [n, s]``."""
        newest, finite = input_ids[:, -1].tolist(), self._finite().tolist()
        ended = [reply.add(token, finite=own) for reply, token, own in zip(self._replies, newest, finite, strict=True)]
        return torch.tensor(ended, device=input_ids.device)


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """Tokens as text, without special ones."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
