"""Causal language models: the answer follows its prompt in one sequence, the loss falls on the answer alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.core.task_kinds import CAUSAL_LM, TaskKind
from lorabank.models.tasks.batches import pad_left, takes_positions
from lorabank.models.tasks.encoding import in_block
from lorabank.models.tasks.padding import mean_over_passes, padding_of
from lorabank.models.tasks.prompting import encode_pairs
from lorabank.models.tasks.task_types import Examples

IGNORED = -100
"""Label of a place where nothing is to be learnt; `torch.nn.functional.cross_entropy` leaves it out."""


class CausalLM:
    """PEFT's ``CAUSAL_LM``."""

    kind: ClassVar[TaskKind] = CAUSAL_LM

    def encode(
        self,
        tokenizer: Any,
        texts: Sequence[str],
        targets: Sequence[str],
        *,
        labels: Sequence[str],
        template: str | None,
        max_length: int,
    ) -> Examples:
        """Token ids of prompts and completions; arguments and errors as in `encode_pairs`."""
        return encode_pairs(
            tokenizer, texts, targets, labels=labels, template=template, max_length=max_length, glued=True
        )

    def collate(self, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch in which every row ends in the same column, so that the answers stand in the last ones.

        A row's last token is predicted but predicts nothing, so it is not an input.

        Returns:
            ``input_ids``, ``attention_mask`` and ``position_ids`` (each row's own, from 0), int64
            ``[n, longest row - 1]``, padded on the left; ``labels`` int64 ``[n, longest completion]``: what the last
            columns of the input predict, -100 in front of shorter completions.

        Raises:
            ValueError: No token of the batch is labelled: a mean over none would not be a number.
        """
        inputs = pad_left(tokenizer, [[*row["prompt"], *row["completion"]][:-1] for row in rows], torch.device("cpu"))
        labels, _ = in_block([row["completion"] for row in rows], IGNORED, left=True)
        return {**inputs, "labels": check_labelled(torch.from_numpy(labels))}

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Mean cross entropy of the answers' tokens; logits are computed for the columns that predict them only.

        A row counts as it would alone: where padding on the left reaches a model, the rows are padded on the right,
        and where that does too, rows of one length are passed together.

        Args:
            model: A causal language model. What its forward pass does not take (``position_ids``,
                ``logits_to_keep``, ``use_cache``) is left out.
            inputs: What `collate` gives, on the model's device.

        Returns:
            A float32 scalar with its graph.
        """
        return mean_over_passes(self._loss, model, inputs)

    def predictions(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits ``[tokens, vocabulary]`` and the token that follows, of every place of the rows' answers."""
        return labelled(*self._logits(model, inputs))

    def _loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        return mean_cross_entropy(*self._logits(model, inputs))

    def _logits(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Of rows that may share a pass: logits ``[n, s, vocabulary]`` and labels ``[n, s]``."""
        known = set(inspect.signature(inner(model).forward).parameters)
        if not takes_positions(inner(model)):
            known.discard("position_ids")
        inputs = inputs | {"labels": inputs["labels"][:, -inputs["input_ids"].shape[1] :]}
        if not padding_of(inner(model)).left:
            inputs = padded_right(inputs)
        labels = inputs["labels"]
        columns = labels.shape[1]
        given = {**inputs, "logits_to_keep": columns, "use_cache": False}
        output = model(**{name: value for name, value in given.items() if name in known and name != "labels"})
        return output.logits[:, -columns:], labels


def padded_right(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `CausalLM.collate` gives, with the padding behind the rows.

    Returns:
        The same tensors; ``labels`` from the first column on that predicts a labelled token in any row.
    """
    mask, labels = inputs["attention_mask"], inputs["labels"]
    width = mask.shape[1]
    columns = torch.arange(width, device=mask.device)
    place = (columns + (width - mask.sum(-1, keepdim=True))) % width
    wide = F.pad(labels, (width - labels.shape[1], 0), value=IGNORED).gather(1, place)
    first = int((wide != IGNORED).any(0).float().argmax())
    return {
        "input_ids": inputs["input_ids"].gather(1, place),
        "attention_mask": mask.gather(1, place),
        "position_ids": columns.expand_as(mask),
        "labels": wide[:, first:],
    }


def check_labelled(labels: Tensor) -> Tensor:
    """The labels of a batch on a CPU, where to look at them makes no device wait.

    Raises:
        ValueError: No token is labelled.
    """
    if not bool((labels != IGNORED).any()):
        raise ValueError("no token of the batch is labelled: a mean over none would not be a number")
    return labels


def inner(model: nn.Module) -> Any:
    """The language model in a wrapper for several devices."""
    return getattr(model, "module", model)


def labelled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The places where something is to be learnt: float32 logits ``[tokens, vocabulary]`` and labels ``[tokens]``."""
    real = labels != IGNORED
    return logits[real].float(), labels[real]


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labelled tokens, in float32.

    Args:
        logits: ``[n, s, vocabulary]``, any float.
        labels: int64 ``[n, s]``, -100 where nothing is to be learnt.

    Returns:
        A float32 scalar; not a number where no token is labelled, which `check_labelled` refuses in time.
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)
