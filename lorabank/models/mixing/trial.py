"""Whether a base can do what a task asks of it: tried on a few of its rows, before hours are spent on all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch

from lorabank.core.errors import IncompatibleError, LorabankError
from lorabank.core.machine.exhaustion import exhausted
from lorabank.models.bases.body import same_attention
from lorabank.models.bases.loading import LoadedBase
from lorabank.models.bases.quiet import first_line
from lorabank.models.finite import check_weights, explained
from lorabank.models.mixing.features import extract_features
from lorabank.models.tasks.encoding import encode_texts
from lorabank.models.tasks.task_types import Examples, TaskType


def try_base(base: LoadedBase, task_type: TaskType, examples: Examples, name: str, *, training: bool) -> None:
    """Pass the shortest and the longest row through a base without adapters, as answering and training will.

    Some models of transformers ask for more than a text's tokens (places on a page, a language), and some take only
    certain lengths (Reformer in training, Funnel from five tokens on).

    Args:
        base: The base with a head that answers; left as it was, as is the global random state.
        task_type: What the rows are in common.
        examples: Encoded rows, one or more.
        name: The base model's name, for the message.
        training: Whether it is to be trained on them.

    Raises:
        IncompatibleError: A pass fails, or gives numbers that are not finite.
        DivergedError: They are not finite because a weight of the base is not.
    """
    model, device = base.model, base.model.device
    order = sorted(range(len(examples.rows)), key=examples.lengths.__getitem__)
    rows = [examples.rows[i] for i in dict.fromkeys((order[0], order[-1]))]
    if task_type.kind.has_head:  # the shortest text that it may be asked for
        rows.insert(0, {**rows[0], "ids": encode_texts(base.tokenizer, ["a"], base.max_length or 8).ids[0]})
    modes = {"reads": False, "learns from": True} if training else {"reads": False}
    was = model.training
    gpus = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=gpus), same_attention(model):
        try:
            for verb, mode in modes.items():
                model.train(mode)
                for batch in [rows] if mode else [[row] for row in rows]:
                    with _explained(name, verb, batch):
                        _pass(base, task_type, batch)
            with _explained(name, "reads", rows), explained(model):
                extract_features(
                    model, base.tokenizer, ["a", "a b c d e f g h i j k l"], max_length=base.max_length or 16
                )
        finally:
            model.train(was)


def _pass(base: LoadedBase, task_type: TaskType, rows: Sequence[Mapping[str, Any]]) -> None:
    inputs = {key: value.to(base.model.device) for key, value in task_type.collate(base.tokenizer, rows).items()}
    if task_type.kind.has_head:
        del inputs["labels"]
        answer = base.model(**inputs).logits.float().logsumexp(-1)  # -inf stands for labels that the head has not
    else:
        answer = task_type.loss(base.model, inputs)
    if not bool(answer.isfinite().all()):
        check_weights(base.model)
        raise ValueError("its answers are not finite")


@contextmanager
def _explained(name: str, verb: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """What a model raises is about the base; what lorabank raises, or the machine, says itself what it is about."""
    try:
        yield
    except LorabankError:
        raise
    except Exception as error:
        if exhausted(error) is not None:
            raise
        _refuse(name, verb, rows, error)


def _refuse(name: str, verb: str, rows: Sequence[Mapping[str, Any]], error: Exception) -> NoReturn:
    sizes = sorted(len(row.get("ids") or (*row.get("prompt", ()), *row.get("completion", ()))) for row in rows)
    tokens = " to ".join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))
    raise IncompatibleError(
        f"base model {name!r} fails where it {verb} texts of {tokens} tokens: {first_line(error)}",
        hint="choose another model: --base",
        unchanged="nothing was changed",
    ) from error
