"""Training one adapter: from rows and the frozen past to factors and a head."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, TrainingArguments

from lorabank.core import plugins
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError, DivergedError
from lorabank.core.lora import AdapterStack, LoraFactors
from lorabank.core.observer import Observer
from lorabank.core.records import BaseModelRecord
from lorabank.core.seeding import seed_everything
from lorabank.models.heads import build_head, head_state, put_head
from lorabank.models.loading import (
    find_head_modules,
    input_limit,
    load_base,
    load_tokenizer,
    quiet_transformers,
    resolve_device,
    resolve_target_modules,
)
from lorabank.models.resolving import locate_base
from lorabank.models.task_types import Examples, TaskType
from lorabank.training.checkpoints import newest_checkpoint
from lorabank.training.groups import GroupedFactors
from lorabank.training.layer import LoraLinear, attach_adapter, fold
from lorabank.training.penalties.base import Penalty
from lorabank.training.strategies import Strategy
from lorabank.training.trainer import AdapterTrainer


@dataclass(frozen=True)
class TrainJob:
    """Everything that decides an adapter.

    Attributes:
        base: The bank's base model.
        config: The settings.
        strategy: The strategy that ``config.strategy`` names.
        texts: Training texts: what is classified, or prompts.
        targets: For each text its label or completion.
        labels: The task's labels; empty for free text.
        template: Prompt of a text, with ``{text}``; None where the text is the prompt.
        earlier: Reads all ready adapters of the bank, stacked; None for the first task. Called once: what training
            needs of them is folded into the weights or copied, the rest is let go.
        context: Names in ``earlier`` that are active while training.
        continued: Name in ``earlier`` of the adapter that goes on training, or None.
        work: Folder of the run's checkpoints.
        resume: Whether to go on from the newest whole checkpoint.
    """

    base: BaseModelRecord
    config: TrainConfig
    strategy: Strategy
    texts: Sequence[str]
    targets: Sequence[str]
    labels: tuple[str, ...]
    earlier: Callable[[], AdapterStack | None]
    context: tuple[str, ...]
    continued: str | None
    work: Path
    template: str | None = None
    resume: bool = False


@dataclass(frozen=True)
class TrainedAdapter:
    """What training gives; tensors are float32 on the CPU.

    Attributes:
        factors: The new adapter.
        head: State of the head modules by full parameter name.
        head_modules: Names of the modules that are stored whole.
        penalties: The weight of each penalty that was used.
        head_digest: SHA-256 of the head as safetensors, None for a model without one.
        max_length: Tokens of a text: what was asked for, or the model's limit.
        metrics: Last losses, overlap with each earlier adapter, capacity, rows cut and dropped.
    """

    factors: LoraFactors
    head: dict[str, Tensor]
    head_modules: tuple[str, ...]
    target_modules: tuple[str, ...]
    penalties: dict[str, float]
    head_digest: str | None
    max_length: int
    steps: int
    wall_seconds: float
    device: str
    metrics: dict[str, Any]


def resolve_penalties(config: TrainConfig, strategy: Strategy) -> list[tuple[str, float, Penalty]]:
    """Name, weight and object of each penalty that the settings ask for."""
    chosen: list[tuple[str, float, Penalty]] = []
    name = config.penalty or strategy.penalty
    if name and name != "none":
        penalty: Penalty = plugins.load(plugins.PENALTIES, name, "penalty")()
        weight = penalty.default_weight if config.lambda_orth is None else config.lambda_orth
        chosen.append((name, weight, penalty))
    elif config.lambda_orth:
        raise ConfigError(
            f"lambda_orth = {config.lambda_orth} has no penalty to weigh: strategy {strategy.name!r} uses none",
            hint="add --penalty orthogonal",
            unchanged="nothing was changed",
        )
    if config.lambda_l2 > 0:
        chosen.append(("norm", config.lambda_l2, plugins.load(plugins.PENALTIES, "norm", "penalty")()))
    return chosen


def train_adapter(job: TrainJob, observer: Observer) -> TrainedAdapter:
    """Train one adapter and its head.

    The same job gives the same bytes on one CPU machine, resumed or not.

    Raises:
        DivergedError: If a loss or a trained tensor is not finite.
        IncompatibleError: If the base is not the bank's.
    """
    config, device = job.config, resolve_device(job.config.device)
    penalties = resolve_penalties(config, job.strategy)
    # every task starts from other factors: with equal ones the new A would be the old one
    earlier = job.earlier()
    seed_everything(config.seed * 1_000_003 + (len(earlier.names) if earlier else 0))
    base = load_base(job.base, num_labels=max(len(job.labels), 1), device=device, dtype=torch.float32)
    model = base.model
    task_type: TaskType = plugins.load(plugins.TASK_TYPES, job.base.task_type, "task type")()
    if task_type.has_head:
        put_head(model, build_head(model, base.head_modules, len(job.labels), config.seed))
    targets = resolve_target_modules(model, config.target_modules, base.head_modules)
    if earlier and job.context:
        fold(model, earlier.select(job.context))
    layers = attach_adapter(
        model,
        targets,
        r=config.r,
        lora_alpha=config.lora_alpha,
        use_rslora=config.use_rslora,
        dropout=config.lora_dropout,
        initial=_continued(job, earlier, targets),
    )
    max_length = min(config.max_length, base.max_length or config.max_length)
    examples = task_type.encode(
        base.tokenizer, job.texts, job.targets, labels=job.labels, template=job.template, max_length=max_length
    )
    fates = ((examples.cut, "cut to"), (examples.dropped, "dropped: their answers do not fit into"))
    for count, fate in fates:
        if count:
            observer.notice(f"{count} of {len(job.texts)} training texts are {fate} {max_length} tokens")
    with_basis = any(name == "orthogonal-normalized" for name, _, _ in penalties)
    groups = GroupedFactors(layers, earlier, with_basis=with_basis)
    del earlier
    started = time.monotonic()
    trainer = _trainer(job, model, base.tokenizer, task_type, examples, penalties, groups, observer, device)
    checkpoint = newest_checkpoint(job.work) if job.resume else None
    observer.start(f"training ({config.strategy})", math.ceil(_steps(len(examples.rows), config)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        observer.finish()
    factors = _factors(layers)
    head = {name: _still(value) for name, value in head_state(model, base.head_modules).items()}
    trained = {f"lora_A of {name}": value for name, value in factors.A.items()} | head
    _check_finite(trained | {f"lora_B of {name}": value for name, value in factors.B.items()})
    return TrainedAdapter(
        factors=factors,
        head=head,
        head_modules=base.head_modules,
        target_modules=targets,
        penalties={name: weight for name, weight, _ in penalties},
        head_digest=hashlib.sha256(save_tensors(head)).hexdigest() if head else None,
        max_length=max_length,
        steps=int(trainer.state.global_step),
        wall_seconds=time.monotonic() - started,
        device=str(device),
        metrics={
            **{f"final_{name}": value for name, value in trainer.terms.items()},
            "rows_cut": examples.cut,
            "rows_dropped": examples.dropped,
            **groups.report(),
        },
    )


@dataclass(frozen=True)
class AdapterPlan:
    """What can be told of an adapter before it is trained.

    Attributes:
        target_modules: Full names of the modules that it changes.
        parameters: Trainable parameters, with the head's.
        max_length: Tokens of a text: what was asked for, or the model's limit.
    """

    target_modules: tuple[str, ...]
    parameters: int
    max_length: int


def plan_adapter(base: BaseModelRecord, config: TrainConfig, labels: int) -> AdapterPlan:
    """Plan a task's adapter from the base's shapes and its tokenizer; no weight is loaded."""
    model = _shapes(base)
    task_type: TaskType = plugins.load(plugins.TASK_TYPES, base.task_type, "task type")()
    head_modules = find_head_modules(model, set(), base.name) if task_type.has_head else ()
    targets = resolve_target_modules(model, config.target_modules, head_modules)
    shapes = [model.get_parameter(f"{name}.weight").shape for name in targets]
    adapter = sum(config.r * (d_out + d_in) for d_out, d_in in shapes)
    head = build_head(model, head_modules, labels, config.seed).state() if task_type.has_head else {}
    return AdapterPlan(
        target_modules=targets,
        parameters=adapter + sum(tensor.numel() for tensor in head.values()),
        max_length=min(config.max_length, input_limit(model, load_tokenizer(base)) or config.max_length),
    )


def _shapes(base: BaseModelRecord) -> PreTrainedModel:
    auto = getattr(transformers, plugins.load(plugins.TASK_TYPES, base.task_type, "task type").auto_class)
    with quiet_transformers(), torch.device("meta"):
        config = AutoConfig.from_pretrained(locate_base(base).path, local_files_only=True)
        model: PreTrainedModel = auto.from_config(config)
    return model


def _steps(rows: int, config: TrainConfig) -> float:
    per_epoch = math.ceil(math.ceil(rows / config.batch_size) / config.gradient_accumulation_steps)
    return per_epoch * config.epochs


def _continued(job: TrainJob, earlier: AdapterStack | None, targets: Sequence[str]) -> LoraFactors | None:
    """The factors of the adapter that goes on training, checked against the settings."""
    if job.continued is None or earlier is None:
        return None
    stack = earlier.select([job.continued])
    if set(stack.modules) != set(targets):
        raise ConfigError(
            "strategy 'seqlora' goes on training the last adapter, which adapts other modules than --target-modules",
            hint="leave --target-modules as it was, or use another --strategy",
            unchanged="nothing was changed",
        )
    ranks = {factors.A.shape[0] for factors in stack.modules.values()}
    if ranks != {job.config.r}:
        raise ConfigError(
            f"strategy 'seqlora' goes on training the last adapter of rank {max(ranks)}, not {job.config.r}",
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
    model: nn.Module,
    tokenizer: Any,
    task_type: TaskType,
    examples: Examples,
    penalties: Sequence[tuple[str, float, Penalty]],
    groups: GroupedFactors,
    observer: Observer,
    device: torch.device,
) -> AdapterTrainer:
    config = job.config
    arguments = TrainingArguments(
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
        report_to=config.report_to,
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        bf16=device.type == "cuda",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
    )
    return AdapterTrainer(
        lengths=[min(length, config.max_length) for length in examples.lengths],
        model=model,
        args=arguments,
        train_dataset=examples.rows,
        data_collator=partial(task_type.collate, tokenizer),
        task_loss=task_type.loss,
        penalties=penalties,
        groups=groups,
        observer=observer,
    )


def _factors(layers: Mapping[str, LoraLinear]) -> LoraFactors:
    return LoraFactors(
        {name: _still(layer.lora_A) for name, layer in layers.items()},
        {name: _still(layer.lora_B) for name, layer in layers.items()},
        {name: layer.scaling for name, layer in layers.items()},
    )


def _still(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().contiguous().clone()


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise DivergedError(
                f"training diverged: {name} is not finite",
                unchanged="the adapter did not enter the bank",
                hint="lower --learning-rate",
            )
