"""Training one adapter: from rows and the frozen past to factors and a head."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.errors import ConfigError, IncompatibleError, leaving
from lorabank.core.machine import distributed as processes
from lorabank.core.machine.seeding import seed_everything
from lorabank.core.observer import Observer
from lorabank.core.shelves import TASK_TYPES
from lorabank.models.answering.base import check_answer_length
from lorabank.models.bases.blocks import of_modules, of_sites
from lorabank.models.bases.kinds.experts import Experts
from lorabank.models.bases.loading import NEW_BANK, LoadedBase, resolve_device, resolve_dtype
from lorabank.models.bases.passed_by import check_called
from lorabank.models.bases.sites import Site, site_of
from lorabank.models.finite import explained
from lorabank.models.tasks.heads import Head, build_head, grow_head, put_head
from lorabank.models.tasks.padding import padding_of
from lorabank.models.tasks.passages import passages
from lorabank.models.tasks.task_types import Examples, TaskType
from lorabank.training.checkpoints import newest_checkpoint
from lorabank.training.context import TrainContext
from lorabank.training.factor_groups import GroupedFactors
from lorabank.training.feeding import Feed, batches, encoded_rows, feed, held_out, inputs
from lorabank.training.job import TrainedAdapter, TrainJob
from lorabank.training.layers.attaching import Attached
from lorabank.training.layers.layer import EffectiveWeights
from lorabank.training.layers.live import Live, take_shift
from lorabank.training.layers.movement import Movement
from lorabank.training.layers.shadows import Shadows
from lorabank.training.layers.shared_input import share_inputs
from lorabank.training.loop.class_weights import balanced
from lorabank.training.loop.finished import (
    check_finite,
    check_left,
    check_trained,
    ranks_by_module,
    still,
    still_factors,
)
from lorabank.training.loop.holding import Holding
from lorabank.training.loop.reporting import StepsReported
from lorabank.training.methods import chosen_methods, found_targets, learning_rate
from lorabank.training.penalties.base import Penalty
from lorabank.training.planning import (
    check_warmup,
    few_steps,
    planned_steps,
    resolve_penalties,
    rows_apart,
    schedule_of,
)
from lorabank.training.replaying import MixedTask, keep_heads, kept_rows, memory_of
from lorabank.training.tracking import TrackedArguments
from lorabank.training.trainer import AdapterTrainer

_ANOTHER = "choose other --target-modules, or train in a bank with another base model"
_KEPT_SHARE = 0.25
"""Of the base's weights, the most that lie in memory twice while a task is trained.

The past is folded into copies of the weights that it adapts, and the task is scored with the weights themselves. Of
query and value that is a small part of a base, and keeping them spares loading it again. Where every linear layer is
adapted it would be most of a second base: the base is let go, and read again after the training.
"""


@leaving("the bank was not changed", hint=_ANOTHER, commands=NEW_BANK, kinds=(IncompatibleError,))
@leaving("the bank was not changed")
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
    task, own = set_up(job, base)
    padding_of(base.model)  # measured before anything watches the model's passes
    found = found_targets(base.model, config, base.head_modules)
    if found.notice:
        observer.notice(found.notice)
    rows = encoded_rows(job, base, max_length, observer)
    context = _context(job, base, task, rows, found.sites, earlier, max_length)
    attached = _attach(job, context)
    saved = _save(job, context.without_past(), attached)
    live = Live(base.model, attached.layers, saved.parametrization)
    movement, untrained = Movement(attached.layers, attached.parametrization.moved), attached.parametrization.tuned()
    context = context.without_past()  # what training needs of it is in the layers
    penalties += attached.penalties
    with_basis = any(penalty.needs_basis for _, _, penalty in penalties)
    groups = GroupedFactors(
        attached.layers, earlier and of_sites(earlier, found.sites), with_basis=with_basis, anchor=attached.anchor
    )
    del earlier
    started = time.monotonic()
    fed = feed(job, base, task, rows, saved.loss, context.apart)
    check_warmup(planned_steps(len(fed.lengths), config), config)
    if told := few_steps(len(fed.lengths), config):
        observer.notice(told)
    holding = held_out(job, base, task, len(fed.lengths), max_length, observer)
    trainer = _trainer(job, base, fed, penalties, groups, saved, live, holding, observer)
    observer.start(f"training ({config.strategy})", planned_steps(len(trainer.lengths), config))
    try:
        _train(trainer, base.model, job)
    finally:
        for end in saved.ends:
            end()
        observer.finish()
    factors = still_factors(attached.parametrization.fold(), context.scaling)
    head = {name: still(value) for name, value in own.state().items()} if own else {}
    check_finite(factors, head)
    tuned, steps, report = attached.parametrization.tuned(), int(trainer.state.global_step), {}
    if tuned and untrained:
        check_trained(untrained, tuned, steps, learning_rate(config))
    else:
        check_left(factors, config.variant)
        movement.check(steps, learning_rate(config))
        report = groups.report(factors) | ranks_by_module(factors, found.sites)
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
        steps=steps,
        wall_seconds=time.monotonic() - started,
        device=str(device),
        metrics=_metrics(job, rows, trainer) | report,
        curve=trainer.recorder.curve(holding.told() if holding else None),
        objects=job.strategy.record(context, attached),
        tuned=tuned,
    )


def _context(
    job: TrainJob,
    base: LoadedBase,
    task: MixedTask,
    examples: Examples,
    sites: Sequence[Site],
    earlier: AdapterStack | None,
    max_length: int,
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
        batches=partial(batches, task, base, examples.rows, own, job.config.batch_size),
        loss=task.loss,
        unweighted=task.unweighted,
        inputs=partial(inputs, task, base, examples.rows),
        mean=task.mean,
        weight=task.weight,
        memory=memory_of(examples, job.replayed, heads=task.several),
        kept=kept_rows(examples, job.kept),
        rows=own,
        texts=partial(passages, base.model, base.tokenizer, max_length=max_length, batch_size=job.config.batch_size),
        apart=rows_apart(own, job.config, job.number),
    )


def _attach(job: TrainJob, context: TrainContext) -> Attached:
    """Put the new adapter on the model, whose weights are kept for later only where that costs little memory."""
    methods = chosen_methods(job.config)
    if _share(context.model, context, shifted=methods.shifts or methods.variant.moves) > _KEPT_SHARE:
        job.base.let_go()
    with explained(context.model):
        made = methods.variant.parametrize(context, methods.start)
        take_shift(made, newest_checkpoint(job.work) if job.resume else None)
        return job.strategy.attach(context, made)


def _save(job: TrainJob, context: TrainContext, attached: Attached) -> Attached:
    """What is trained, with the savings put on the model; what the strategy records sees none of them."""
    with explained(context.model):
        for saving in chosen_methods(job.config).savings:
            attached = saving.attach(context, attached)
    return attached


def _share(model: nn.Module, context: TrainContext, *, shifted: bool) -> float:
    """The part of a model's weights that change in memory: by the past, and where something is taken out or moved."""
    sites = {name: site_of(model, name) for name in (context.earlier.modules if context.earlier else ())}
    if shifted:
        sites |= {site.module_name: site_of(model, site.module_name) for site in context.sites}
    changed = sum(site.d_in * site.d_out for site in sites.values() if not site.quantised)
    return changed / sum(parameter.numel() for parameter in model.parameters())


def set_up(job: TrainJob, base: LoadedBase) -> tuple[MixedTask, Head | None]:
    """The rows' common task, and the new head, which is on the model now; None for a language model."""
    task_type: TaskType = TASK_TYPES.load(job.base.record.task_type)()
    weighted = job.config.class_weights != "none"
    weights = balanced(job.targets, job.labels).to(base.model.device) if weighted else None
    if not task_type.kind.has_head:
        return MixedTask(task_type, None), None
    own = build_head(base.model, base.head_modules, len(job.labels), job.config.seed, dtype=torch.float32)
    if job.earlier_head:
        grow_head(own, job.earlier_head)
    elif job.replayed:
        heads = keep_heads(base.model, base.head_modules, own, job.replayed)
        return MixedTask(task_type, heads, weights, len(job.texts)), own
    put_head(base.model, own)
    return MixedTask(task_type, None, weights, len(job.texts)), own


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
    refused = partial(ConfigError, hint="use another --strategy", unchanged="nothing was changed")
    if any(factors.gain is not None for factors in stack.modules.values()):
        raise refused(f"strategy {job.strategy.name!r} continues the last adapter, which has a row gain (DoRA)")
    ranks = {factors.A.shape[0] for factors in stack.modules.values()}
    if len(ranks) > 1:
        raise refused(
            f"strategy {job.strategy.name!r} continues the last adapter, whose modules have ranks from {min(ranks)} "
            f"to {max(ranks)}"
        )
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
    fed: Feed,
    penalties: Sequence[tuple[str, float, Penalty]],
    groups: GroupedFactors,
    attached: Attached,
    live: Live,
    holding: Holding | None,
    observer: Observer,
) -> AdapterTrainer:
    config = job.config
    a_step = config.batch_size * config.gradient_accumulation_steps
    tokens = min(a_step / len(fed.lengths), 1.0) * sum(fed.lengths) / processes.count()
    layers, arguments = attached.layers.values(), arguments_of(job, base.model.device)
    if any(isinstance(module, Experts) for module in base.model.modules()):  # their tokens may all go elsewhere
        arguments.ddp_find_unused_parameters = True
    products = torch.bfloat16 if arguments.bf16 else resolve_dtype(config.base_dtype, base.model.device)
    if products.itemsize < 4:
        share_inputs(layers, fed.one)
    trainer = AdapterTrainer(
        lengths=fed.lengths,
        model=base.model,
        args=arguments,
        train_dataset=fed.rows,
        data_collator=fed.collate,
        task_loss=fed.loss,
        penalties=penalties,
        groups=groups,
        dropout=config.lora_dropout > 0,
        live=live,
        optimize=chosen_methods(config).optimizer,
        holding=holding,
        after_step=partial(check_called, attached.layers, hint="leave it out of --target-modules"),
        refresh=(EffectiveWeights(layers, tokens), Shadows(layers, products)),
        observer=observer,
        callbacks=[job.tracking.callback] if job.tracking.callback else [],
    )
    trainer.add_callback(StepsReported(job.progress, trainer.terms, holding))  # behind what reads the terms of a step
    return trainer


def arguments_of(job: TrainJob, device: torch.device) -> TrackedArguments:
    """What transformers' Trainer is told."""
    config = job.config
    return TrackedArguments(
        output_dir=str(job.work),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=learning_rate(config),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type=schedule_of(config),
        warmup_steps=config.warmup,
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
        ddp_find_unused_parameters=bool(job.replayed)
        or any(saving.partial for saving in chosen_methods(config).savings),
        ddp_broadcast_buffers=False,
    )


def _train(trainer: AdapterTrainer, model: nn.Module, job: TrainJob) -> None:
    """All steps, or those behind the newest checkpoint of an interrupted training."""
    checkpoint = newest_checkpoint(job.work) if job.resume else None
    if checkpoint and (why := trainer.differs_from(checkpoint)):
        raise IncompatibleError(
            f"{checkpoint.name} of the interrupted run {why}",
            hint="resume with the version that wrote it, or train from the first step on",
            commands=[job.restart] if job.restart else [],
            unchanged="the interrupted run is still there",
        )
    with warnings.catch_warnings(), explained(model):
        warnings.simplefilter("ignore")
        if not (checkpoint and trainer.take_over(checkpoint)):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _metrics(job: TrainJob, examples: Examples, trainer: AdapterTrainer) -> dict[str, Any]:
    run, held = job.tracking.run, trainer.holding.told() if trainer.holding else None
    return {
        **{f"final_{name}": value for name, value in trainer.terms.read.items()},
        "rows_cut": examples.cut,
        "rows_dropped": examples.dropped,
        **({"rows_replayed": examples.replayed} if job.replayed else {}),
        **({"packs": len(trainer.lengths)} if job.config.packing else {}),
        **({"rows_held_out": held.rows, "best_step": held.best, "stopped_early": held.stopped} if held else {}),
        **({"tracker": run} if run else {}),
    }
