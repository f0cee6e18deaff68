"""Answers of a language model: each task's prompt and label words, or free text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabank.core.errors import DataError
from lorabank.core.methods import with_settings
from lorabank.core.shelves import SCORINGS, TASK_TYPES
from lorabank.core.templates import parted
from lorabank.models.answering.base import AnswerForm, Answers, check_answer_length
from lorabank.models.answering.generating import generate, write
from lorabank.models.answering.likelihood import completion_log_likelihoods, label_log_likelihoods
from lorabank.models.answering.replies import GenerationRequest, Written
from lorabank.models.answering.scorings.base import Scoring
from lorabank.models.bases.loading import LoadedBase
from lorabank.models.finite import check_rows
from lorabank.models.tasks.batches import Enter
from lorabank.models.tasks.prompting import encode_labels, encode_prompts
from lorabank.models.tasks.task_types import TaskType
from lorabank.models.tasks.token_rows import TokenRows


class TextAnswerer:
    """All tasks of a bank on one language model.

    Args:
        base: The loaded base.
        task_type: ``"CAUSAL_LM"`` or ``"SEQ_2_SEQ_LM"``.
        forms: The form of each task, in the order in which they are asked for.
        batch_size: Rows of a forward pass.
    """

    def __init__(self, base: LoadedBase, task_type: str, forms: Sequence[AnswerForm], batch_size: int) -> None:
        self.forms = tuple(forms)
        self.generates = any(scoring_of(form).generates for form in self.forms)
        self.base = base
        self._type: TaskType = TASK_TYPES.load(task_type)()
        self._batch_size = batch_size

    def answer(self, texts: Sequence[str], heads: NDArray[np.int64], enter: Enter, *, shared: bool) -> Answers:
        """The likeliest label of each text, or what is generated; see `Answerer`."""
        said = [""] * len(texts)
        probabilities = np.full(len(texts), np.nan, np.float32)
        for form, rows in self._groups(heads):
            found = scoring_of(form).answer(self, form, [texts[i] for i in rows], _Rows(enter, rows), shared=shared)
            probabilities[rows] = found.probabilities
            for i, answer in zip(rows, found.said, strict=True):
                said[i] = answer
        return Answers(tuple(said), probabilities)

    def label_shares(
        self, texts: Sequence[str], heads: NDArray[np.int64], enter: Enter, *, shared: bool
    ) -> list[NDArray[np.float64]]:
        """What each text's scoring gives its labels; all to its answer where the scoring keeps no shares."""
        found: list[NDArray[np.float64]] = [np.empty(0)] * len(texts)
        for form, rows in self._groups(heads):
            answers = scoring_of(form).answer(self, form, [texts[i] for i in rows], _Rows(enter, rows), shared=shared)
            shares = answers.shares
            if shares is None:
                shares = np.array([[float(label == said) for label in form.labels] for said in answers.said])
            for i, own in zip(rows, shares, strict=True):
                found[i] = own
        return found

    def log_likelihoods(
        self, texts: Sequence[str], targets: Sequence[str], heads: NDArray[np.int64], enter: Enter
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Log-likelihood and tokens of each target, 0 of both where it does not fit; see `Answerer`."""
        likelihoods, tokens = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
        for form, rows in self._groups(heads):
            pairs = self._encoded(form, [texts[i] for i in rows], [targets[i] for i in rows])
            whole = [rows[pair["index"]] for pair in pairs]
            likelihoods[whole], tokens[whole] = completion_log_likelihoods(
                self.base.model,
                self.base.tokenizer,
                TokenRows(pair["prompt"] for pair in pairs),
                TokenRows(pair["completion"] for pair in pairs),
                batch_size=self._batch_size,
                enter=_Rows(enter, whole),
            )
        check_rows(np.isfinite(likelihoods), texts, "likelihoods")
        return likelihoods, tokens

    def loss(self, texts: Sequence[str], targets: Sequence[str], heads: NDArray[np.int64], enter: Enter) -> Tensor:
        """Mean cross entropy of the answers' tokens; rows that do not fit count for nothing, as in training."""
        pairs: list[Mapping[str, Any]] = []
        passed: list[int] = []
        for form, rows in self._groups(heads):
            try:
                fitting = self._encoded(form, [texts[i] for i in rows], [targets[i] for i in rows])
            except DataError:
                continue  # none of these rows fits
            pairs += fitting
            passed += [rows[pair["index"]] for pair in fitting]
        if not pairs:
            return torch.zeros((), device=self.base.model.device)
        enter(passed)
        return self._type.loss(self.base.model, self._inputs(pairs))

    def predictions(self, text: str, target: str, head: int) -> tuple[Tensor, Tensor]:
        """The logits and tokens of one row's answer; see `Answerer`."""
        try:
            pairs = self._encoded(self.forms[head], [text], [target])
        except DataError:
            return torch.zeros(0, 1, device=self.base.model.device), torch.zeros(0, dtype=torch.long)
        return self._type.predictions(self.base.model, self._inputs(pairs))

    def _inputs(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        inputs = self._type.collate(self.base.tokenizer, pairs)
        return {name: tensor.to(self.base.model.device) for name, tensor in inputs.items()}

    def _groups(self, heads: NDArray[np.int64]) -> Iterator[tuple[AnswerForm, list[int]]]:
        """Each form that is asked for, with its rows."""
        for head in np.unique(heads).tolist():
            yield self.forms[head], np.flatnonzero(heads == head).tolist()

    def _encoded(self, form: AnswerForm, texts: Sequence[str], targets: Sequence[str]) -> Sequence[Mapping[str, Any]]:
        """Prompt and completion as training encodes them."""
        return self._type.encode(
            self.base.tokenizer,
            texts,
            targets,
            labels=form.labels,
            template=form.template,
            max_length=form.max_length,
        ).rows

    def _prompts(self, form: AnswerForm, texts: Sequence[str], room: int | Sequence[int]) -> TokenRows:
        return encode_prompts(self.base.tokenizer, texts, form.template, room, end=not self._type.kind.glued).ids

    def label_tokens(self, form: AnswerForm) -> Sequence[list[int]]:
        """The token ids of each label; see `Asked`."""
        return encode_labels(self.base.tokenizer, form.labels, glued=self._glued(form))

    def label_prompts(self, form: AnswerForm, texts: Sequence[str], labels: Sequence[list[int]]) -> TokenRows:
        """The token ids of n prompts behind which each of a task's labels, given as tokens, has room.

        Raises:
            DataError: There is no room for the template.
        """
        room = form.max_length - max(len(ids) for ids in labels)
        return self._prompts(form, texts, room)

    def label_log_likelihoods(
        self, form: AnswerForm, texts: Sequence[str], enter: Enter, *, shared: bool
    ) -> NDArray[np.float64]:
        """Log-likelihood ``[n, labels]`` of each label behind each text; see `Asked`."""
        labels = self.label_tokens(form)
        scores = label_log_likelihoods(
            self.base.model,
            self.base.tokenizer,
            self.label_prompts(form, texts, labels),
            labels,
            batch_size=self._batch_size,
            enter=enter,
            share_prefix=shared,
        )
        check_rows(np.isfinite(scores.max(1)), texts, "label likelihoods")  # NaN is the maximum of its row
        return scores

    def generated(self, form: AnswerForm, texts: Sequence[str], enter: Enter, *, max_new_tokens: int) -> list[str]:
        """The greedy continuation of each text; see `Asked`."""
        limit = self.base.max_length
        check_answer_length(max_new_tokens, limit)
        room = form.max_length if limit is None else min(form.max_length, limit - max_new_tokens)
        prompts = self._prompts(form, texts, room)
        return generate(
            self.base.model,
            self.base.tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=self._batch_size,
            enter=enter,
        )

    def write(
        self, texts: Sequence[str], forms: Sequence[AnswerForm], enter: Enter, requests: Sequence[GenerationRequest]
    ) -> list[Written]:
        """Free text behind each text; texts of different forms and requests share a batch.

        Args:
            texts: n texts.
            forms: How each is asked; its scoring means nothing here.
            enter: Called before every forward pass with the numbers of its texts.
            requests: How each is answered.

        Returns:
            n answers.

        Raises:
            ConfigError: An answer leaves no room for a prompt.
            DataError: A prompt has no tokens, or there is no room for its template.
            DivergedError: The model gives no finite probabilities.
        """
        prompts = self.prompts(texts, forms, requests)
        model, tokenizer = self.base.model, self.base.tokenizer
        return write(model, tokenizer, prompts, requests, batch_size=self._batch_size, enter=enter)

    def prompts(
        self, texts: Sequence[str], forms: Sequence[AnswerForm], requests: Sequence[GenerationRequest]
    ) -> list[list[int]]:
        """The token ids of n prompts; arguments and errors as of `write`."""
        limit = self.base.max_length
        for most in {one.sampling.max_new_tokens for one in requests}:
            check_answer_length(most, limit)
        groups: dict[tuple[AnswerForm, type], list[int]] = {}
        for i, form in enumerate(forms):
            groups.setdefault((form, type(form.template)), []).append(i)
        prompts: list[list[int]] = [[]] * len(texts)
        for (form, _), rows in groups.items():
            lengths = (requests[i].sampling.max_new_tokens for i in rows)
            rooms = [form.max_length if limit is None else min(form.max_length, limit - most) for most in lengths]
            for i, ids in zip(rows, self._prompts(form, [texts[i] for i in rows], rooms), strict=True):
                prompts[i] = ids
        return prompts

    def _glued(self, form: AnswerForm) -> bool:
        """Whether an answer follows its prompt after a blank."""
        return self._type.kind.glued and parted(form.template)


@lru_cache
def scoring_of(form: AnswerForm) -> Scoring:
    """How a task is scored, with its settings.

    Raises:
        ConfigError: No package that is installed has the scoring.
    """
    (method,) = with_settings([(SCORINGS, form.scoring)], form.settings, among=(SCORINGS,))
    scoring: Scoring = method
    return scoring


class _Rows:
    """Row numbers of a group as row numbers of all texts."""

    def __init__(self, enter: Enter, rows: Sequence[int]) -> None:
        self._enter = enter
        self._rows = rows

    def __call__(self, batch: Sequence[int]) -> None:
        self._enter([self._rows[i] for i in batch])
