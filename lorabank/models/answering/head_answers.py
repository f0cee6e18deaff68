"""Answers of a sequence classifier: one head per task behind one switch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lorabank.core.errors import ConfigError
from lorabank.models.answering.base import AnswerForm, Answers
from lorabank.models.bases.loading import LoadedBase
from lorabank.models.finite import check_rows, finite_rows
from lorabank.models.tasks.batches import Enter
from lorabank.models.tasks.encoding import encode_texts, pad_batch
from lorabank.models.tasks.heads import Heads, reserve_heads
from lorabank.models.tasks.padding import passes, row_batches
from lorabank.models.tasks.token_rows import TokenRows
from lorabank.models.tasks.transfer import Results, sent


class HeadAnswerer:
    """All heads of a bank on one body.

    Args:
        base: The loaded base; its head is replaced by a switch.
        heads: Every head, in the order of ``forms``; asked for one when it is first chosen.
        forms: The form of each head.
        batch_size: Texts of a forward pass.
        vouch: Called with a head's index before the head answers for the first time; raises where it must not.
    """

    def __init__(
        self,
        base: LoadedBase,
        heads: Heads,
        forms: Sequence[AnswerForm],
        batch_size: int,
        vouch: Callable[[int], None] = lambda head: None,
    ) -> None:
        self.forms = tuple(forms)
        self.generates = False
        self._base = base
        self._batch_size = batch_size
        self._selection = reserve_heads(base.model, heads, [len(form.labels) for form in forms])
        self._vouch = vouch
        self._vouched: set[int] = set()

    def answer(self, texts: Sequence[str], heads: NDArray[np.int64], enter: Enter, *, shared: bool) -> Answers:
        """The most probable label of each text in its head; see `Answerer`."""
        best = np.zeros(len(texts), np.int64)
        probabilities = np.zeros(len(texts), np.float32)
        finite = np.ones(len(texts), np.bool_)
        results = Results(best, probabilities, finite)
        ids = self._ids(texts, heads)
        for rows in row_batches(self._base.model, ids.lengths, self._batch_size):
            enter(rows)
            with self._chosen(heads[rows]):
                logits = self._base.model(**self._inputs([ids[i] for i in rows])).logits.float()
            own = finite_rows(logits, [len(self.forms[head].labels) for head in heads[rows].tolist()])
            top = logits.softmax(-1).max(-1)
            results.put(rows, top.indices, top.values, own)
        results.read()
        check_rows(finite, texts, "logits")
        said = tuple(self.forms[head].labels[label] for head, label in zip(heads.tolist(), best.tolist(), strict=True))
        return Answers(said, probabilities)

    def label_shares(
        self, texts: Sequence[str], heads: NDArray[np.int64], enter: Enter, *, shared: bool
    ) -> list[NDArray[np.float64]]:
        """The softmax of each text's head, in float64; see `Answerer`."""
        found: list[NDArray[np.float64]] = [np.empty(0)] * len(texts)
        ids = self._ids(texts, heads)
        for rows in row_batches(self._base.model, ids.lengths, self._batch_size):
            enter(rows)
            with self._chosen(heads[rows]):
                logits = self._base.model(**self._inputs([ids[i] for i in rows])).logits.double().cpu()
            for i, own in zip(rows, logits, strict=True):
                found[i] = own[: len(self.forms[heads[i]].labels)].softmax(-1).numpy()
        check_rows(np.array([bool(np.isfinite(shares).all()) for shares in found]), texts, "logits")
        return found

    def log_likelihoods(
        self, texts: Sequence[str], targets: Sequence[str], heads: NDArray[np.int64], enter: Enter
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """A classifier has none.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("a classifier has no perplexity", hint="--metric accuracy", unchanged="nothing was changed")

    def loss(self, texts: Sequence[str], targets: Sequence[str], heads: NDArray[np.int64], enter: Enter) -> Tensor:
        """Mean cross entropy of the labels in their heads."""
        logits = self.logits(texts, heads, enter)
        labels = [self.forms[head].labels.index(target) for head, target in zip(heads.tolist(), targets, strict=True)]
        return F.cross_entropy(logits, torch.tensor(labels, device=logits.device))

    def predictions(self, text: str, target: str, head: int) -> tuple[Tensor, Tensor]:
        """The logits ``[1, labels]`` of one row and its label ``[1]``; see `Answerer`."""
        labels = self.forms[head].labels
        logits = self.logits([text], np.array([head], np.int64))[:, : len(labels)]
        return logits, torch.tensor([labels.index(target)], device=logits.device)

    def logits(self, texts: Sequence[str], heads: NDArray[np.int64], enter: Enter = lambda rows: None) -> Tensor:
        """Logits ``[n, widest head]`` of one batch in float32; -inf where a row's head has no such label."""
        ids = self._ids(texts, heads)
        parts = passes(self._base.model, ids.lengths)
        found = []
        for rows in parts:
            enter(rows)
            with self._chosen(heads[rows]):
                found.append(self._base.model(**self._inputs([ids[i] for i in rows])).logits.float())
        return torch.cat(found)[np.argsort(np.concatenate(parts))] if len(parts) > 1 else found[0]

    def _chosen(self, heads: NDArray[np.int64]) -> AbstractContextManager[None]:
        for head in set(heads.tolist()) - self._vouched:
            self._vouch(head)
            self._vouched.add(head)
        return self._selection.chosen(torch.from_numpy(heads))

    def _ids(self, texts: Sequence[str], heads: NDArray[np.int64]) -> TokenRows:
        limits = [self.forms[head].max_length for head in heads.tolist()]
        return encode_texts(self._base.tokenizer, texts, limits).ids

    def _inputs(self, ids: Sequence[list[int]]) -> dict[str, Tensor]:
        return sent(pad_batch(self._base.tokenizer, ids), self._base.model.device)
