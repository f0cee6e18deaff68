r"""What a model answered, kept to be compared with what a later one answers.

A term is what is predicted at one place: the label of a text, or a token of an answer. Of its logits z the k largest
are kept, and of all others the log of their sum, so that a language model's vocabulary need not be stored: they count
as one choice. With as many choices as k or fewer, nothing is lost.

    log p_c = z_c - log sum_j exp z_j
    D(p || q) = sum_c p_c (log p_c - log q_c),      over the kept choices and the rest

By the log sum inequality this is at most the divergence over all choices, and equal where the rest is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

NOTHING = -1e30
"""The logit of a choice that there is not: its probability is 0, and differences from it are still numbers."""


@dataclass(frozen=True)
class Answers:
    """The answers at n places.

    Attributes:
        logits: float32 ``[n, k]``, the largest of each place; `NOTHING` where there are fewer.
        choices: int64 ``[n, k]``, which they are; the first one again where there are fewer.
        rest: float32 ``[n]``, the log of the sum of ``exp`` of all others, `NOTHING` where there are none.
    """

    logits: Tensor
    choices: Tensor
    rest: Tensor

    def __len__(self) -> int:
        return len(self.rest)

    def at(self, places: Tensor) -> Answers:
        """Those of some places, int64 ``[m]``."""
        return Answers(self.logits[places], self.choices[places], self.rest[places])

    def log_probabilities(self) -> tuple[Tensor, Tensor]:
        """Of the kept choices ``[n, k]``, and of all others together ``[n]``."""
        total = torch.cat([self.logits, self.rest[:, None]], 1).logsumexp(-1)
        return self.logits - total[:, None], self.rest - total


def kept_answers(logits: Tensor, most: int) -> Answers:
    """The answers that float32 logits ``[n, choices]`` give; of at most so many choices. Choices at -inf are none."""
    logits = logits.clamp(min=NOTHING)
    top, choices = logits.topk(min(most, logits.shape[1]), dim=-1)
    return Answers(top, torch.where(top > NOTHING, choices, choices[:, :1]), _others(logits, choices))


def divergence(kept: Answers, logits: Tensor) -> Tensor:
    """``D(p || q)`` of each place, from the kept answers to those of logits ``[n, choices]``: float32 ``[n]``."""
    logits = logits.clamp(min=NOTHING)
    total = logits.logsumexp(-1)
    before, before_rest = kept.log_probabilities()
    now, now_rest = logits.gather(-1, kept.choices) - total[:, None], _others(logits, kept.choices) - total
    return (before.exp() * (before - now)).sum(-1) + before_rest.exp() * (before_rest - now_rest)


def squared_distance(kept: Answers, logits: Tensor) -> Tensor:
    """The mean over the kept choices of each place of the squared difference of the logits: float32 ``[n]``."""
    real = kept.logits > NOTHING
    off = logits.gather(-1, kept.choices) - kept.logits
    return torch.where(real, off, 0.0).square().sum(-1) / real.sum(-1)


def joined(parts: Sequence[Answers]) -> Answers:
    """The answers of several sources one after the other."""
    widest = max(part.logits.shape[1] for part in parts)

    def wide(part: Answers) -> Answers:
        missing = widest - part.logits.shape[1]
        none = part.logits.new_full((len(part), missing), NOTHING)
        again = part.choices[:, :1].expand(-1, missing)
        return Answers(torch.cat([part.logits, none], 1), torch.cat([part.choices, again], 1), part.rest)

    same = [wide(part) for part in parts]
    return Answers(*(torch.cat([getattr(part, name) for part in same]) for name in ("logits", "choices", "rest")))


def answers_to_bytes(answers: Answers, counts: Tensor) -> bytes:
    """Safetensors of the answers, and of how many terms each row has, int64 ``[rows]``."""
    tensors = {
        "logits": answers.logits,
        "choices": answers.choices.int(),
        "rest": answers.rest,
        "terms": counts.int(),
    }
    data: bytes = save_tensors({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    return data


def answers_from_bytes(data: bytes) -> tuple[Answers, Tensor]:
    """What `answers_to_bytes` wrote."""
    tensors = load_tensors(data)
    return Answers(tensors["logits"], tensors["choices"].long(), tensors["rest"]), tensors["terms"].long()


def _others(logits: Tensor, choices: Tensor) -> Tensor:
    """The log of the sum of ``exp`` of all logits but the chosen ones, ``[n]``."""
    return logits.scatter(-1, choices, NOTHING).logsumexp(-1)
