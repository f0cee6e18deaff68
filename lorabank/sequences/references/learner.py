"""One model whose weights are trained task after task, and which answers as it is now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lorabank.bank.objects.canonical import canonical
from lorabank.core.config import TrainConfig
from lorabank.core.machine.distributed import device_name
from lorabank.core.observer import Observer
from lorabank.core.records import AS_TRAINED, TaskRecord
from lorabank.core.task_kinds import task_kind
from lorabank.data.loading import TaskData
from lorabank.data.methods import chosen_form
from lorabank.data.rows import Rows
from lorabank.evaluation.scoring import Said, measured
from lorabank.models.answering.base import Answerer, AnswerForm
from lorabank.models.answering.head_answers import HeadAnswerer
from lorabank.models.answering.text_answers import TextAnswerer
from lorabank.models.bases.kinds.experts import stored_parameters
from lorabank.models.bases.loading import load_base, resolve_device
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.finite import explained
from lorabank.models.tasks.heads import Head, build_head, load_head
from lorabank.sequences.references.base import NOT_STORABLE, Reference
from lorabank.training.job import TrainJob
from lorabank.training.strategies.base import Strategy
from lorabank.training.weights import TrainedWeights, train_weights


class Learner:
    """A model of its own over the base's weights, in float32.

    Args:
        reference: Which weights are trained.
        base: The base model.
        device: A name for `resolve_device`.
        work: A folder that transformers may use.
    """

    def __init__(self, reference: Reference, base: OpenBase, device: str, work: Path) -> None:
        self.base = base
        self.device = resolve_device(device_name(device))
        self._reference, self._work = reference, work
        self._loaded = load_base(base.record, tokenizer=base.tokenizer, device=self.device, dtype=torch.float32)
        self._of_head = tuple(f"{name}." for name in self._loaded.head_modules)
        self._names = [name for name, _ in self._body() if reference.trains(name)]

    def learn(self, config: TrainConfig, data: TaskData, number: int, observer: Observer) -> TrainedWeights:
        """Train on the rows of a task.

        Args:
            config: The settings.
            data: The rows.
            number: How many tasks were learnt before: no two trainings have the same order of batches.
            observer: Gets the losses.
        """
        job = TrainJob(
            base=self.base,
            config=config,
            strategy=Strategy(self._reference.name, "off"),
            texts=data.train.texts,
            targets=data.train.labels,
            labels=data.labels,
            template=data.prompt_template,
            scoring=chosen_form(config, data.form, data.scoring)[1],
            earlier=lambda: None,
            context=(),
            continued=None,
            work=self._work,
            number=number,
        )
        return train_weights(self._loaded, job, self._reference.trains, observer)

    def state(self) -> dict[str, Tensor]:
        """What is trained of the base, by name; `restore` takes it."""
        weights = dict(self._body())
        return {name: weights[name].detach() for name in self._names}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Be as the model was whose `state` this is."""
        weights = dict(self._body())
        with torch.no_grad():
            for name in self._names:
                weights[name].copy_(state[name])

    @property
    def max_length(self) -> int | None:
        """Tokens that the model takes; None for any number."""
        return self._loaded.max_length

    def answerer(
        self, forms: Sequence[AnswerForm], heads: Sequence[Mapping[str, Tensor]], seeds: Sequence[int], batch_size: int
    ) -> Answerer:
        """Asks the model as it is now.

        Args:
            forms: How each task is asked.
            heads: State of each task's head; empty where the task is not learnt yet, or the model has no heads.
            seeds: By which the heads of tasks that are not learnt yet are drawn, as their trainings begin with them.
            batch_size: Texts of a forward pass.
        """
        record = self.base.record
        if not task_kind(record.task_type).has_head:
            return TextAnswerer(self._loaded, record.task_type, forms, batch_size)
        made = [self._head(*one) for one in zip(forms, heads, seeds, strict=True)]
        return HeadAnswerer(self._loaded, made, forms, batch_size)

    def explained(self) -> AbstractContextManager[None]:
        """Names the weight that is not finite, where what the block computes is not."""
        return explained(self._loaded.model)

    def _head(self, form: AnswerForm, state: Mapping[str, Tensor], seed: int) -> Head:
        model, modules, labels = self._loaded.model, self._loaded.head_modules, len(form.labels)
        if state:
            return load_head(model, modules, labels, state, dtype=torch.float32)
        return build_head(model, modules, labels, seed, dtype=torch.float32)

    def _body(self) -> Iterator[tuple[str, nn.Parameter]]:
        named = stored_parameters(self._loaded.model)
        return ((name, weight) for name, weight in named if not name.startswith(self._of_head))


class InMemory:
    """A model that was trained up to a stage, as what is scored; it answers for this stage alone.

    Args:
        learner: The model.
        answerer: Asks it.
        forms: How each task is asked, by place.
        stage: The task, from 1, that it learnt last; 0 before any.
        learnt: What decides the model beside the rows that are scored: JSON values.
    """

    name = AS_TRAINED
    mode = NOT_STORABLE
    task_id: Literal["given", "routed"] = "given"

    def __init__(
        self, learner: Learner | None, answerer: Answerer | None, forms: Sequence[AnswerForm], stage: int, learnt: Any
    ) -> None:
        self._learner, self._answerer = learner, answerer
        self._forms, self._stage, self._learnt = forms, stage, learnt

    def identity(self, stage: int, task: TaskRecord) -> tuple[str, ...]:
        """What was learnt, up to which stage, and how the task is asked."""
        form = self._forms[task.position - 1].identity()
        return (canonical(["reference", self._learnt, stage, task.name, form])[1:-1],)

    def answer(self, stage: int, task: TaskRecord, rows: Rows) -> Said:
        """Answer the rows with the task's own head."""
        if self._learner is None or self._answerer is None or stage != self._stage:
            raise ValueError(f"the model of stage {stage} is not in memory")
        place = task.position - 1
        heads = np.full(len(rows), place, np.int64)
        with torch.inference_mode(), self._learner.explained():
            if measured(self._forms[place].scoring):
                likelihoods, tokens = self._answerer.log_likelihoods(rows.texts, rows.labels, heads, lambda rows: None)
                return Said((), (), likelihoods, tokens)
            answers = self._answerer.answer(rows.texts, heads, lambda rows: None, shared=True)
        return Said(answers.said, probabilities=answers.probabilities)

    def routes(self, stage: int, texts: Sequence[str]) -> tuple[list[str], NDArray[np.float64] | None]:
        """A reference is given the task of each text.

        Raises:
            ValueError: Always.
        """
        raise ValueError("the task of each text is given")
