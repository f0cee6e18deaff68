"""Training one adapter: from rows and the frozen past to factors and a head."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.errors import ConfigError, DataError, DivergedError, IncompatibleError
from lorabank.core.machine import distributed as processes
from lorabank.core.machine.seeding import seed_everything
from lorabank.core.observer import Observer
from lorabank.core.shelves import TASK_TYPES
from lorabank.models.answering.base import check_answer_length
from lorabank.models.bases.blocks import of_modules, of_sites
from lorabank.models.bases.loading import LoadedBase, resolve_device, resolve_dtype
from lorabank.models.bases.passed_by import check_called
from lorabank.models.bases.sites import Site, site_of
from lorabank.models.bases.targets import find_targets
from lorabank.models.finite import explained
from lorabank.models.mixing.trial import try_base
from lorabank.models.tasks.heads import Head, build_head, put_head
from lorabank.models.tasks.padding import padding_of
from lorabank.models.tasks.probing import undisturbed
from lorabank.models.tasks.task_types import Examples, TaskType
from lorabank.training.checkpoints import newest_checkpoint
from lorabank.training.context import TrainContext
from lorabank.training.factor_groups import GroupedFactors
from lorabank.training.job import TrainedAdapter, TrainJob
from lorabank.training.layers.attaching import Attached
from lorabank.training.layers.layer import EffectiveWeights
from lorabank.training.layers.live import Live
from lorabank.training.layers.movement import Movement
from lorabank.training.layers.shadows import Shadows
from lorabank.training.layers.shared_input import share_inputs
from lorabank.training.methods import chosen_methods
from lorabank.training.penalties.base import Penalty
from lorabank.training.planning import planned_steps, resolve_penalties
from lorabank.training.replaying import MixedTask, add_replayed, keep_heads
from lorabank.training.tracking import TrackedArguments
from lorabank.training.trainer import AdapterTrainer

_KEPT_SHARE = 0.25
"""Of the base's weights, the most that lie in memory twice while a task is trained.

The past is folded into copies of the weights that it adapts, and the weights themselves are what the task is scored
with afterwards. Of the query and value projections that is a small part of a base, and keeping them spares loading it
again. Where every linear layer is adapted it would be most of a second base, so there memory comes before time: the
base is let go, its old weights are freed one by one as they are folded, and it is read again after the training.
"""


def train_adapter(job: TrainJob, observer: Observer) -> TrainedAdapter:
    """Train one adapter and its head.

    The same job gives the same bytes on one CPU machine, resumed or not. In several processes each trains along and
    each returns the same. Only the frozen base is in ``--base-dtype``; factors, gains, head and optimizer are float32.

    Raises:
        DivergedError: If a loss or a trained tensor is not finite, or the training changed nothing.
        IncompatibleError: If the base is not the bank's, or the checkpoint not one of this training.
    """
    config, device = job.config, resolve_device(processes.device_name(job.config.device))
    penalties = resolve_penalties(config, job.strategy)
    earlier = job.earlier()
    # every task starts from other factors: with equal ones the new A would be the old one
    seed_everything(config.seed * 1_000_003 + job.number)
    dtype = resolve_dtype(config.base_dtype, device)
    base = job.base.load(device=device, dtype=dtype)
    max_length = min(config.max_length, base.max_length or config.max_length)
    if job.scoring is not None and any(job.texts):
        check_answer_length(job.scoring.answer_tokens, base.max_length)
    task, own = _set_up(job, base)
    padding_of(base.model)  # measured before anything watches the model's passes
    found = find_targets(base.model, config.target_modules, base.head_modules, config.first_layer)
    if found.notice:
        observer.notice(found.notice)
    rows = _encoded(job, base, max_length, observer)
    context = _context(job, base, task, rows, found.sites, earlier)
    attached = _attach(job, context)
    live = Live(base.model, attached.layers, attached.parametrization)
    movement = Movement(attached.layers)
    context = replace(context, earlier=None, initial=None, objects={})  # what training needs of it is in the layers
    penalties += attached.penalties
    with_basis = any(penalty.needs_basis for _, _, penalty in penalties)
    groups = GroupedFactors(
        attached.layers, earlier and of_sites(earlier, found.sites), with_basis=with_basis, anchor=attached.anchor
    )
    del earlier
    started = time.monotonic()
    trainer = _trainer(job, base, task, rows, penalties, groups, attached, live, observer)
    observer.start(f"training ({config.strategy})", planned_steps(len(rows.rows), config))
    try:
        _train(trainer, base.model, job)
    finally:
        observer.finish()
    factors = _still_factors(attached.parametrization.fold())
    head = {name: _still(value) for name, value in own.state().items()} if own else {}
    _check_finite(factors, head)
    movement.check(int(trainer.state.global_step), config)
    if untouched := movement.untouched():
        observer.notice(untouched)
    return TrainedAdapter(
        factors=of_modules(factors, found.sites),
        head=head,
        head_modules=base.head_modules,
        target_modules=found.modules,
        penalties={name: weight for name, weight, _ in penalties},
        head_digest=hashlib.sha256(save_tensors(head)).hexdigest() if head else None,
        max_length=max_length,
        steps=int(trainer.state.global_step),
        wall_seconds=time.monotonic() - started,
        device=str(device),
        metrics=_metrics(job, rows, trainer) | groups.report(factors),
        objects=job.strategy.record(context, attached),
    )


def _context(
    job: TrainJob,
    base: LoadedBase,
    task: MixedTask,
    examples: Examples,
    sites: Sequence[Site],
    earlier: AdapterStack | None,
) -> TrainContext:
    own = len(examples.rows) - examples.replayed
    return TrainContext(
        model=base.model,
        sites=sites,
        config=job.config,
        number=len(earlier.names) if earlier else 0,
        earlier=earlier.select(job.context) if earlier and job.context else None,
        initial=_continued(job, earlier, sites),
        objects=job.objects,
        batches=partial(_batches, task, base, examples.rows, own, job.config.batch_size),
        loss=task.loss,
    )


def _attach(job: TrainJob, context: TrainContext) -> Attached:
    """Put the new adapter on the model, whose weights are kept for later only where that costs little memory."""
    methods = chosen_methods(job.config)
    if _share(context.model, context, shifted=methods.start.shifts) > _KEPT_SHARE:
        job.base.let_go()
    with explained(context.model):
        return job.strategy.attach(context, methods.variant.parametrize(context, methods.start))


def _share(model: nn.Module, context: TrainContext, *, shifted: bool) -> float:
    """The part of a model's weights that are changed in memory: by the past, and by a start that is taken out."""
    sites = {name: site_of(model, name) for name in (context.earlier.modules if context.earlier else ())}
    if shifted:
        sites |= {site.module_name: site_of(model, site.module_name) for site in context.sites}
    changed = sum(site.d_in * site.d_out for site in sites.values())
    return changed / sum(parameter.numel() for parameter in model.parameters())


def _set_up(job: TrainJob, base: LoadedBase) -> tuple[MixedTask, Head | None]:
    """The rows' common task, and the new head, which is on the model now; None for a language model."""
    task_type: TaskType = TASK_TYPES.load(job.base.record.task_type)()
    if not task_type.kind.has_head:
        return MixedTask(task_type, None), None
    own = build_head(base.model, base.head_modules, len(job.labels), job.config.seed, dtype=torch.float32)
    if job.replayed:
        return MixedTask(task_type, keep_heads(base.model, base.head_modules, own, job.replayed)), own
    put_head(base.model, own)
    return MixedTask(task_type, None), own


def _encoded(job: TrainJob, base: LoadedBase, max_length: int, observer: Observer) -> Examples:
    """The task's own rows, on which the base is tried, then the replayed ones."""
    task_type: TaskType = TASK_TYPES.load(job.base.record.task_type)()
    examples = task_type.encode(
        base.tokenizer, job.texts, job.targets, labels=job.labels, template=job.template, max_length=max_length
    )
    if job.labels and examples.dropped:
        raise DataError(
            f"{examples.dropped} of {len(job.texts)} training texts have a label that does not fit into {max_length} "
            "tokens beside its prompt",
            hint="raise --max-length, or --scoring generation for completions that are not labels",
            unchanged="nothing was changed",
        )
    fates = ((examples.cut, "truncated to"), (examples.dropped, "dropped: their answers do not fit into"))
    for count, fate in fates:
        if count:
            observer.notice(f"{count} of {len(job.texts)} training texts are {fate} {max_length} tokens")
    try_base(base, task_type, examples, job.base.record.name, training=True)
    return add_replayed(task_type, base.tokenizer, examples, job.replayed) if job.replayed else examples


def _batches(
    task: MixedTask, base: LoadedBase, rows: Sequence[Mapping[str, Any]], count: int, size: int
) -> Iterator[dict[str, Tensor]]:
    """The first rows in their order, as inputs on the model's device."""
    for first in range(0, count, size):
        batch = task.collate(base.tokenizer, [rows[i] for i in range(first, min(first + size, count))])
        yield {name: tensor.to(base.model.device) for name, tensor in batch.items()}


def _pass_one(task: MixedTask, base: LoadedBase, rows: Sequence[Mapping[str, Any]]) -> None:
    """The first row through the model, without a trace."""
    with undisturbed(base.model):
        task.loss(base.model, next(_batches(task, base, rows, 1, 1)))


def _continued(job: TrainJob, earlier: AdapterStack | None, sites: Sequence[Site]) -> LoraFactors | None:
    """The factors by site of the adapter that is continued, checked against the settings."""
    if job.continued is None or earlier is None:
        return None
    whole = earlier.select([job.continued])
    stack = of_sites(whole, sites)
    rows = {module: len(factors.A) for module, factors in whole.modules.items()}
    for site in sites:
        rows[site.module_name] = rows.get(site.module_name, 0) - (
            len(stack.modules[site.name].A) if site.name in stack.modules else 0
        )
    if len(stack.modules) < len(sites) or any(rows.values()):
        raise ConfigError(
            f"strategy {job.strategy.name!r} continues the last adapter, which adapts other modules than "
            "--target-modules",
            hint="leave --target-modules as it was, or use another --strategy",
            unchanged="nothing was changed",
        )
    if any(factors.gain is not None for factors in stack.modules.values()):
        raise ConfigError(
            f"strategy {job.strategy.name!r} continues the last adapter, which has a row gain (DoRA)",
            hint="use another --strategy",
            unchanged="nothing was changed",
        )
    ranks = {factors.A.shape[0] for factors in stack.modules.values()}
    if ranks != {job.config.r}:
        raise ConfigError(
            f"strategy {job.strategy.name!r} continues the last adapter of rank {max(ranks)}, not {job.config.r}",
            hint=f"use --r {max(ranks)}, or another --strategy",
            unchanged="nothing was changed",
        )
    return LoraFactors(
        {name: factors.A for name, factors in stack.modules.items()},
        {name: factors.B for name, factors in stack.modules.items()},
        {name: float(factors.scale[0]) for name, factors in stack.modules.items()},
    )


def _trainer(
    job: TrainJob,
    base: LoadedBase,
    task: MixedTask,
    examples: Examples,
    penalties: Sequence[tuple[str, float, Penalty]],
    groups: GroupedFactors,
    attached: Attached,
    live: Live,
    observer: Observer,
) -> AdapterTrainer:
    config = job.config
    lengths = [min(length, config.max_length) for length in examples.lengths]
    a_step = config.batch_size * config.gradient_accumulation_steps
    tokens = min(a_step / len(lengths), 1.0) * sum(lengths) / processes.count()
    layers, arguments = attached.layers.values(), _arguments(job, base.model.device)
    products = torch.bfloat16 if arguments.bf16 else resolve_dtype(config.base_dtype, base.model.device)
    if products.itemsize < 4:
        share_inputs(layers, partial(_pass_one, task, base, examples.rows))
    return AdapterTrainer(
        lengths=lengths,
        model=base.model,
        args=arguments,
        train_dataset=examples.rows,
        data_collator=partial(task.collate, base.tokenizer),
        task_loss=task.loss,
        penalties=penalties,
        groups=groups,
        dropout=config.lora_dropout > 0,
        live=live,
        after_step=partial(check_called, attached.layers, hint="--target-modules without it"),
        refresh=(EffectiveWeights(layers, tokens), Shadows(layers, products)),
        observer=observer,
        callbacks=[job.tracking.callback] if job.tracking.callback else [],
    )


def _arguments(job: TrainJob, device: torch.device) -> TrackedArguments:
    config = job.config
    return TrackedArguments(
        output_dir=str(job.work),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type=config.lr_scheduler_type,
        optim="adamw_torch_fused",
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="steps",
        save_steps=config.save_steps,
        logging_steps=10,
        logging_strategy="no" if config.report_to == "none" else "steps",
        report_to="none",  # its callback is the tracking's
        run_name=job.tracking.run_name,
        lorabank=job.tracking.settings,
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        # autocast for a base in float32 on a GPU; one in bfloat16 computes in bfloat16 by itself
        bf16=(resolve_dtype(config.base_dtype, device), resolve_dtype("auto", device))
        == (torch.float32, torch.bfloat16),
        dataloader_pin_memory=device.type == "cuda",
        accelerator_config={"non_blocking": device.type == "cuda"},
        logging_nan_inf_filter=False,  # `LossTerms` looks at the loss, and waits for nothing
        remove_unused_columns=False,
        # a process whose rows are all replayed leaves the new head out
        ddp_find_unused_parameters=bool(job.replayed),
        ddp_broadcast_buffers=False,
    )


def _train(trainer: AdapterTrainer, model: nn.Module, job: TrainJob) -> None:
    """All steps, or those behind the newest checkpoint of an interrupted training."""
    checkpoint = newest_checkpoint(job.work) if job.resume else None
    if checkpoint and (lacking := trainer.lacking(checkpoint)):
        raise IncompatibleError(
            f"{checkpoint.name} of the interrupted run does not hold {lacking}, which this version trains",
            hint="resume with the version that wrote it, or train from the first step on",
            commands=[job.restart] if job.restart else [],
            unchanged="the interrupted run is still there",
        )
    with warnings.catch_warnings(), explained(model):
        warnings.simplefilter("ignore")
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _metrics(job: TrainJob, examples: Examples, trainer: AdapterTrainer) -> dict[str, Any]:
    run = job.tracking.run
    return {
        **{f"final_{name}": value for name, value in trainer.terms.read.items()},
        "rows_cut": examples.cut,
        "rows_dropped": examples.dropped,
        **({"rows_replayed": examples.replayed} if job.replayed else {}),
        **({"tracker": run} if run else {}),
    }


def _still_factors(factors: LoraFactors) -> LoraFactors:
    A, B, gain = (
        {site: _still(tensor) for site, tensor in part.items()} for part in (factors.A, factors.B, factors.gain)
    )
    return LoraFactors(A, B, factors.scaling, gain)


def _still(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().contiguous().clone()


def _check_finite(factors: LoraFactors, head: Mapping[str, Tensor]) -> None:
    trained = {f"lora_A of {site}": tensor for site, tensor in factors.A.items()} | dict(head)
    trained |= {f"lora_B of {site}": tensor for site, tensor in factors.B.items()}
    trained |= {f"the row gain of {site}": tensor for site, tensor in factors.gain.items()}
    for name, tensor in trained.items():
        if not bool(torch.isfinite(tensor).all()):
            raise DivergedError(
                f"training diverged: {name} is not finite",
                unchanged="the adapter was not added to the bank",
                hint="lower --learning-rate",
            )
