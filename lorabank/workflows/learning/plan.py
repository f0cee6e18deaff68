"""``add-task --dry-run``: what a training would do, without doing it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lorabank.core.config import InitConfig, TrainConfig
from lorabank.core.observer import SilentObserver
from lorabank.data.loading import TaskData, example_row
from lorabank.workflows.bases import future_base
from lorabank.workflows.learning.known_rows import known_rows
from lorabank.workflows.learning.one_head import grown_labels, head_before
from lorabank.workflows.learning.past import check_past, earlier_adapters
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.results import TaskPlan
from lorabank.workflows.task_data import encode_rows, found_in_data, load_data, scoring_setting

if TYPE_CHECKING:
    from lorabank.training.planning import AdapterPlan
    from lorabank.training.strategies.base import Strategy


def plan_task(
    opened: OpenBank, name: str, config: TrainConfig, init: InitConfig | None, *, replace: bool = False
) -> TaskPlan:
    """What ``add_task`` would do; nothing is trained, written or loaded but the tokenizer and the base's shapes."""
    from lorabank.training.loop.packing import packs
    from lorabank.training.methods import check_here, chosen_methods, filled_in
    from lorabank.training.planning import (
        check_fit,
        check_warmup,
        few_steps,
        plan_adapter,
        planned_steps,
        resolve_penalties,
        rows_apart,
    )
    from lorabank.workflows.learning.advice import characters_per_token, poor_fit
    from lorabank.workflows.learning.replayed import read_replayed, replayed_lengths, rows_before

    check_here(config)
    exists = opened.exists
    found = opened.refresh() if exists else None
    old = found.position_of(name) if found and replace else None
    snapshot = found.without(old) if found else None
    base = future_base(opened, config, init or InitConfig())
    record = base.record
    methods, config = chosen_methods(config), filled_in(config)
    strategy = methods.strategy
    check_past(snapshot, strategy)
    earlier = earlier_adapters(snapshot)
    check_fit(base, config, len(earlier))
    data = load_data(config, base)
    names = {adapter.digest: adapter.task for adapter in earlier}
    labels = grown_labels(head_before(snapshot, config.head), data.labels)
    adapter = plan_adapter(base, config, len(labels), len(names))
    examples = encode_rows(base, data, adapter.max_length)
    lengths = sorted(examples.lengths)
    left_out = frozenset(rows_apart(len(examples.rows), config, len(snapshot.by_position) if snapshot else 0))
    passed = [length for i, length in enumerate(examples.lengths) if i not in left_out]
    again, packed = strategy.in_epoch(rows_before(snapshot)), None
    if config.packing:
        replayed = read_replayed(opened.bank, snapshot, strategy) if snapshot and again else ()
        passed += [min(length, config.max_length) for length in replayed_lengths(base, replayed)]
        packed = packs(passed, adapter.max_length)
    entries = len(passed) + again if packed is None else len(packed)
    check_warmup(planned_steps(entries, config), config)
    per_token = characters_per_token(base, data)
    known = known_rows(opened.bank, snapshot, data.eval, SilentObserver()) if snapshot else {}
    penalties = {penalty: weight for penalty, weight, _ in resolve_penalties(config, strategy)}
    return TaskPlan(
        name=name,
        settings=_filled_in(config, data, strategy, penalties, adapter)
        | {"base": record.name, "revision": record.revision, "task_type": record.task_type},
        train_rows=len(data.train),
        eval_rows=len(data.eval),
        held_rows=len(data.held) if data.held else None,
        packs=None if packed is None else len(packed),
        labels=labels,
        example=example_row(data),
        tokens={
            "mean": sum(lengths) / len(lengths),
            "p95": float(lengths[max(0, math.ceil(0.95 * len(lengths)) - 1)]),
            "max": float(lengths[-1]),
            "characters_per_token": per_token,
        },
        rows_cut=examples.cut,
        rows_dropped=examples.dropped,
        steps=planned_steps(entries, config),
        trainable_parameters=adapter.parameters,
        adapter_bytes=4 * adapter.stored,
        context=tuple(names[digest] for digest in strategy.context(earlier) if digest in names),
        penalty=penalties,
        bank_exists=exists,
        modules_left_out=adapter.left_out,
        not_adapted=adapter.not_adapted,
        prompts=_prompts(data),
        few_steps=few_steps(entries, config),
        poor_fit=poor_fit(per_token),
        **found_in_data(data),
        known_rows={names[digest]: count for digest, count in known.items()},
        replaces=old,
        superseded=tuple(made.name for made in found.holding(old)) if found else (),
    )


def _prompts(data: TaskData) -> str | None:
    """How prompts are made of texts; None where the text is the prompt."""
    if data.chat:
        return "put into the base's chat template"
    return data.prompt_template and json.dumps(data.prompt_template, ensure_ascii=False)


def _filled_in(
    config: TrainConfig, data: TaskData, strategy: Strategy, penalties: Mapping[str, float], adapter: AdapterPlan
) -> dict[str, Any]:
    """The settings that lead to the same adapter with nothing left to strategy, variant, penalty and model."""
    penalty = config.penalty or strategy.penalty or "none"
    endings = dict.fromkeys(name.rpartition(".")[2] for name in adapter.target_modules)
    chosen = config.target_modules not in ("auto", "all-linear")
    return asdict(config) | {
        "format": data.form,
        "scoring": scoring_setting(data),
        "penalty": penalty,
        "penalty_weight": penalties.get(penalty) if config.penalty_weight is None else config.penalty_weight,
        "target_modules": config.target_modules if chosen else ",".join(endings),
        "max_length": adapter.max_length,
    }
