"""What is not finite answers nothing: the one place that says so, whatever was computed and whatever for.

Logits, likelihoods, features and merged weights pass here before anything is made of them. Where the reason lies in
the base model itself the error names its tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lorabank.core.commands import Command
from lorabank.core.errors import DivergedError

_BROKEN = (DivergedError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
"""What comes of a broken weight: some methods decompose what the model computed."""

_SHOWN = 60
"""Characters of a text in a message."""


def finite_rows(logits: Tensor, widths: Sequence[int]) -> Tensor:
    """Which rows of ``logits [n, L]`` are finite in their own first ``widths[i]`` entries, bool ``[n]``.

    What stands behind them is the padding of a narrower head, -inf by intention.
    """
    own = torch.arange(logits.shape[-1]) < torch.tensor(widths)[:, None]
    return (logits.isfinite() | ~own.to(logits.device, non_blocking=True)).all(-1)


def log_total(logits: Tensor) -> Tensor:
    """``log sum exp`` over ``[..., vocabulary]``; NaN where a logit is NaN or +inf, or none is above -inf.

    A single -inf is a token that a model never says, which is not a fault.
    """
    total = logits.logsumexp(-1)
    return total.masked_fill(~total.isfinite(), torch.nan)


def check_rows(finite: NDArray[np.bool_], texts: Sequence[str], what: str) -> None:
    """Refuse what was computed for some texts where it is not finite.

    Args:
        finite: ``[n]``, whether all of it is, for each text.
        texts: n texts.
        what: What was computed, in the plural: ``"logits"``.

    Raises:
        DivergedError: Naming the first such text.
    """
    if not finite.all():
        text = json.dumps(texts[int(np.argmin(finite))][:_SHOWN], ensure_ascii=False)
        raise not_finite(f"the {what} of the text {text}")


def check_tensors(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors that are not finite, or whose squares add up to more than float32 holds.

    The second is as bad: a norm squares what such weights make, and where that overflows it gives 0, from
    which finite logits follow that mean nothing.

    Args:
        tensors: By name.
        what: What they are, in the plural, before the name: ``"the merged weights of"``.

    Raises:
        DivergedError: Naming the first such tensor.
    """
    if not tensors:
        return
    flat = (tensor.detach().reshape(-1).float() for tensor in tensors.values())
    squares = torch.stack([torch.dot(values, values) for values in flat])
    for name, finite in zip(tensors, squares.isfinite().tolist(), strict=True):
        if not finite:
            raise not_finite(f"{what} {name} or their squares")


def not_finite(what: str) -> DivergedError:
    """The refusal of what was computed, in the plural."""
    return DivergedError(
        f"{what} are not finite, so nothing can be answered",
        hint="use smaller weights; show lists the weights with which the adapters answer",
        commands=[Command("show", "NAME")],
        unchanged="nothing was changed",
    )


@contextmanager
def explained(model: nn.Module) -> Iterator[None]:
    """Say that the base model is the reason where it is: what it computes from a broken weight is never finite.

    Args:
        model: Its frozen parameters are the base's.

    Raises:
        DivergedError: In place of one whose reason is a tensor of the base.
    """
    try:
        yield
    except _BROKEN:
        check_weights(model)
        raise


def check_weights(model: nn.Module) -> None:
    """Refuse a base with a broken weight; every one is looked at, so call it after a number that is not.

    Args:
        model: Its frozen parameters are the base's.

    Raises:
        DivergedError: Naming the first tensor that is not finite.
    """
    broken = _broken_tensor(model)
    if broken is not None:
        raise DivergedError(
            f"the base model has values that are not finite in its tensor {broken}",
            hint="make another bank for an intact copy of the base model",
            commands=[Command("-b", "NEW", "init", "--base", "FOLDER")],
            unchanged="the bank was not changed",
        )


def _broken_tensor(model: nn.Module) -> str | None:
    """Name of the first frozen parameter that is not finite, as the base calls it."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and parameter.is_floating_point() and not bool(parameter.isfinite().all()):
            return ".".join(part for part in name.split(".") if part != "base")
    return None
