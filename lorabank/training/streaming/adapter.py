"""One adapter of a stream: trained batch by batch, on rows that are seen once, under a head that grows meanwhile.

The loss is that of `lorabank.training.strategies.online_lora`. Nothing of a stream is known before: an epoch, a
schedule and a variant that plans its steps have no meaning here.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save as save_tensors
from torch import Tensor

from lorabank.core.errors import DivergedError
from lorabank.core.machine.seeding import seed_everything
from lorabank.core.shelves import TASK_TYPES
from lorabank.models.bases.blocks import of_modules, of_sites
from lorabank.models.bases.loading import resolve_device, resolve_dtype
from lorabank.models.tasks.heads import Head, build_head, grow_head, put_head
from lorabank.models.tasks.padding import padding_of, passes
from lorabank.models.tasks.task_types import Examples, TaskType
from lorabank.training.context import TrainContext
from lorabank.training.factor_groups import GroupedFactors
from lorabank.training.job import TrainedAdapter, TrainJob
from lorabank.training.layers.live import Live
from lorabank.training.layers.movement import Movement
from lorabank.training.loop.finished import check_finite, still, still_factors
from lorabank.training.methods import chosen_methods, found_targets, learning_rate
from lorabank.training.replaying import MixedTask
from lorabank.training.strategies.online_lora import OnlineLora, hardest

LabelledRow = tuple[str, str]
"""Text and label."""


class OnlineAdapter:
    """A new adapter beside the earlier ones, and the bank's shared head.

    Args:
        job: The settings, the past and the head to grow from; it holds no rows.
        method: The strategy with its settings.
        hard: The rows of the highest loss so far.

    Attributes:
        labels: Those of the head, which grows when a batch brings new ones.
        hard: The hard rows now.
        steps: Batches so far.
    """

    def __init__(self, job: TrainJob, method: OnlineLora, hard: Sequence[LabelledRow]) -> None:
        config = job.config
        device = resolve_device(config.device)
        earlier = job.earlier()
        seed_everything(config.seed * 1_000_003 + job.number)
        self.labels, self.hard, self.steps = job.labels, tuple(hard), 0
        self._job, self._method, self._started = job, method, time.monotonic()
        self._base = job.base.load(device=device, dtype=resolve_dtype(config.base_dtype, device))
        self._type: TaskType = TASK_TYPES.load(job.base.record.task_type)()
        self._max_length, self._cut = min(config.max_length, self._base.max_length or config.max_length), 0
        model = self._base.model
        padding_of(model)
        self._found = found_targets(model, config, self._base.head_modules)
        task = MixedTask(self._type, None)
        context = TrainContext(
            model=model,
            sites=self._found.sites,
            config=config,
            number=len(earlier.names) if earlier else 0,
            earlier=earlier.select(job.context) if earlier and job.context else None,
            initial=None,
            objects=job.objects,
            batches=self._hard_batches,
            loss=task.loss,
            inputs=lambda rows, head=None: self._inputs([self._encoded(self.hard).rows[i] for i in rows]),
            mean=task.mean,
        )
        self._head = self._grown(dict(job.earlier_head))
        methods = chosen_methods(config)
        self._attached = method.attach(context, methods.variant.parametrize(context, methods.start))
        self._live = Live(model, self._attached.layers, self._attached.parametrization)
        self._movement = Movement(self._attached.layers)
        self._groups = GroupedFactors(
            self._attached.layers,
            earlier and of_sites(earlier, self._found.sites),
            with_basis=False,
            anchor=self._attached.anchor,
        )
        self._context = context.without_past()
        trained = self._attached.parametrization
        apart = trained.groups(learning_rate(config))
        taken = {id(p) for group in apart for p in group["params"]}
        free = [p for p in trained.parameters() if p.requires_grad and id(p) not in taken]
        self._optimizer = self._adamw([{"params": free}, *apart])
        self._of_head = self._adamw([{"params": self._head_parameters()}])

    def step(self, rows: Sequence[LabelledRow]) -> float:
        """One optimizer step on a batch and the hard rows, which are then chosen anew.

        Returns:
            The mean loss of the batch before the step.

        Raises:
            DivergedError: It is not finite.
        """
        self._learn_labels(rows)
        seen = (*rows, *self.hard)
        self._base.model.train(self._job.config.lora_dropout > 0)
        examples = self._encoded(seen)
        self._cut += sum(length > self._max_length for length in examples.lengths[: len(rows)])
        losses = self._losses(examples)
        batch = losses[: len(rows)].mean()
        total = batch + losses[len(rows) :].mean() if self.hard else batch
        groups = self._groups() if self._attached.penalties else []
        for _, weight, penalty in self._attached.penalties:
            total = total + weight * penalty(groups)
        self.steps += 1
        if not bool(torch.isfinite(total)):
            raise DivergedError(
                f"training diverged at batch {self.steps} of an adapter: loss = {float(total)}",
                unchanged="the adapter was not added to the bank",
                hint="lower --learning-rate",
            )
        self._update(total)
        order = hardest(losses.detach().tolist(), self._method.hard_rows)
        self.hard = tuple(seen[i] for i in order)
        return float(batch.detach())

    def finish(self) -> TrainedAdapter:
        """The adapter as it enters the bank, with the importance of its entries on the hard rows.

        Raises:
            DivergedError: A trained tensor is not finite, or nothing was learnt.
        """
        factors = still_factors(self._attached.parametrization.fold(), self._context.scaling)
        head = {name: still(value) for name, value in self._head.state().items()}
        check_finite(factors, head)
        self._movement.check(self.steps, learning_rate(self._job.config))
        return TrainedAdapter(
            factors=of_modules(factors, self._found.sites),
            head=head,
            head_modules=self._base.head_modules,
            target_modules=self._found.modules,
            penalties={name: weight for name, weight, _ in self._attached.penalties},
            head_digest=hashlib.sha256(save_tensors(head)).hexdigest(),
            max_length=self._max_length,
            steps=self.steps,
            wall_seconds=time.monotonic() - self._started,
            device=str(self._base.model.device),
            metrics={"rows_cut": self._cut, "rows_dropped": 0} | self._groups.report(factors),
            objects=self._method.record(self._context, self._attached),
        )

    def _losses(self, examples: Examples) -> Tensor:
        """Cross entropy ``[n]`` of each row, in float32."""
        parts = passes(self._base.model, examples.lengths)
        found = []
        for part in parts:
            inputs = self._inputs([examples.rows[i] for i in part])
            labels = inputs.pop("labels")
            found.append(F.cross_entropy(self._base.model(**inputs).logits.float(), labels, reduction="none"))
        order = torch.tensor([i for part in parts for i in part]).argsort()
        return torch.cat(found)[order.to(found[0].device)]

    def _encoded(self, rows: Sequence[LabelledRow]) -> Examples:
        texts, labels = zip(*rows, strict=True)
        return self._type.encode(
            self._base.tokenizer, texts, labels, labels=self.labels, template=None, max_length=self._max_length
        )

    def _inputs(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        batch = self._type.collate(self._base.tokenizer, rows)
        return {name: tensor.to(self._base.model.device) for name, tensor in batch.items()}

    def _hard_batches(self) -> Iterable[dict[str, Tensor]]:
        """The hard rows, each by itself."""
        for row in self._encoded(self.hard).rows:
            yield self._inputs([row])

    def _update(self, total: Tensor) -> None:
        for optimizer in (self._optimizer, self._of_head):
            optimizer.zero_grad()
        total.backward()
        self._live.pull()
        if limit := self._job.config.max_grad_norm:
            trained = [p for p in self._base.model.parameters() if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(trained, limit)
        for optimizer in (self._optimizer, self._of_head):
            optimizer.step()
        self._live.refresh()

    def _learn_labels(self, rows: Sequence[LabelledRow]) -> None:
        """Let the head grow by the labels that it does not have; its optimizer starts anew."""
        new = sorted({label for _, label in rows} - set(self.labels))
        if not new:
            return
        before = self._head.state() if self.labels else {}
        self.labels = (*self.labels, *new)
        self._head = self._grown(before)
        self._of_head = self._adamw([{"params": self._head_parameters()}])

    def _grown(self, before: dict[str, Tensor]) -> Head:
        """The head of all labels on the model, its first rows those of ``before``."""
        base, seed = self._base, self._job.config.seed
        head = build_head(base.model, base.head_modules, max(len(self.labels), 1), seed, dtype=torch.float32)
        if before:
            grow_head(head, before)
        put_head(base.model, head)
        return head

    def _head_parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for module in self._head.modules.values() for parameter in module.parameters()]

    def _adamw(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        config = self._job.config
        return torch.optim.AdamW(groups, lr=learning_rate(config), weight_decay=config.weight_decay)
