"""General skills by EleutherAI's lm-evaluation-harness: its tasks before any adapter, and with those that answer.

The harness asks the bank's runtime itself (`lorabank.workflows.asking.harness_model`): nothing is exported, and a
composition that routes or weighs each text answers as it does everywhere else. It is the extra ``lm-eval``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lorabank.core.config import EvalConfig
from lorabank.core.errors import (
    ConfigError,
    DataError,
    IncompatibleError,
    LorabankError,
    MissingExtraError,
    NotFoundError,
)
from lorabank.core.machine.packages import install
from lorabank.core.observer import Observer
from lorabank.core.settings import nearest
from lorabank.core.task_kinds import task_kind
from lorabank.evaluation.paired import Paired, paired_test
from lorabank.models.bases.quiet import first_line
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.workflows.asking.general import plain_settings, state_of
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.results import HarnessScore

_PACKAGE = "lm_eval"
_UNCHANGED = "nothing was computed"
_NO_METRIC = ("alias", "name", "sample_len", "sample_count")
"""Entries of the harness's results beside the metrics."""


def checked_tasks(opened: OpenBank, config: EvalConfig) -> Any:
    """The harness's tasks, once it is clear that it can be asked; None where none is named. Nothing is computed.

    It reads the files of all its tasks, which takes some seconds.

    Raises:
        MissingExtraError: The harness is not installed.
        IncompatibleError: The bank's base is not a causal language model.
        NotFoundError: There is no folder of tasks of this name.
        ConfigError: The harness has no task of a name, or none is named beside other settings of it.
    """
    if not config.lm_eval:
        beside = [name for name in ("include_path", "lm_eval_limit") if getattr(config, name) is not None]
        if beside:
            raise ConfigError(
                f"--{beside[0].replace('_', '-')} is about tasks of the lm-evaluation-harness, and none is named",
                hint="add --lm-eval TASK",
                unchanged=_UNCHANGED,
            )
        return None
    if find_spec(_PACKAGE) is None:
        raise MissingExtraError(
            "--lm-eval asks EleutherAI's lm-evaluation-harness, which is not installed",
            hint=install("lm-eval"),
            unchanged=_UNCHANGED,
        )
    base, kind = opened.refresh().base, task_kind(opened.refresh().base.task_type)
    if not (kind.generates and kind.glued):
        raise IncompatibleError(
            f"{base.name} is not a causal language model, which the harness asks",
            hint="leave --lm-eval out",
            unchanged=_UNCHANGED,
        )
    if config.include_path is not None and not Path(config.include_path).is_dir():
        raise NotFoundError(f"--include-path: no such folder: {config.include_path}", unchanged=_UNCHANGED)
    manager = _manager(config)
    known = manager.all_tasks
    for name in config.lm_eval:
        if name not in known:
            raise ConfigError(
                f"--lm-eval: the harness has no task {name[:80]!r}{nearest(name, list(known))}",
                hint="name one of its tasks, or the folder of your own: --include-path DIR",
                unchanged=_UNCHANGED,
            )
    return manager


def harness_scores(
    opened: OpenBank, names: Sequence[str], config: EvalConfig, manager: Any, observer: Observer
) -> dict[str, tuple[HarnessScore, ...]]:
    """Each task of the harness without adapters, and with those that answer after the last task.

    Args:
        opened: The bank.
        names: ``"as-trained"`` (the state that the last training left) and compositions.
        config: The tasks, and how the model answers.
        manager: What `checked_tasks` gave.
        observer: Gets the progress.

    Raises:
        DataError: A task's rows cannot be read.
    """
    settings, limit = plain_settings(opened, config)
    runtime = partial(opened.runtime, settings, observer.notice)
    bare = Plan(weights=np.zeros(len(runtime().stack.names), np.float32))
    observer.start("asking the lm-evaluation-harness", len(names) + 1)
    found = {}
    try:
        before = _asked(runtime, lambda texts: bare, limit, config, manager)
        observer.advance(1, {})
        for done, name in enumerate(names, start=2):
            after = _asked(runtime, state_of(opened, name, runtime), limit, config, manager)
            found[name] = tuple(_compared(before, after))
            observer.advance(done, {})
    finally:
        observer.finish()
    return found


def _manager(config: EvalConfig) -> Any:
    with _quiet():
        return import_module("lm_eval.tasks").TaskManager(include_path=config.include_path)


def _asked(
    runtime: Callable[[], Runtime],
    plan: Callable[[Sequence[str]], Plan],
    limit: int,
    config: EvalConfig,
    manager: Any,
) -> Mapping[str, Any]:
    """The harness's results for a state."""
    from lorabank.workflows.asking.harness_model import BankModel

    with _quiet():
        try:
            found: Mapping[str, Any] = import_module("lm_eval.evaluator").simple_evaluate(
                model=BankModel(runtime(), plan, limit),
                tasks=list(config.lm_eval),
                task_manager=manager,
                limit=config.lm_eval_limit,
                log_samples=True,
            )
        except LorabankError:
            raise
        except Exception as error:  # a task is YAML with functions of its own: it may raise anything
            fetched = isinstance(error, OSError | ImportError)  # what the package datasets raises without rows
            raise DataError(
                f"--lm-eval {', '.join(config.lm_eval)}: {first_line(error)}",
                hint="the rows of most tasks are fetched from the hub once" if fetched else "leave the task out",
                unchanged="no score of the harness was computed",
            ) from error
    return found


def _compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[HarnessScore]:
    for task, own in after["results"].items():
        for key, value in own.items():
            metric, _, taken = key.partition(",")
            if key in _NO_METRIC or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = f"{metric}_stderr,{taken}"
            yield HarnessScore(
                task=task,
                metric=metric if taken in ("", "none") else f"{metric} ({taken})",
                before=float(before["results"][task][key]),
                after=float(value),
                before_error=_number(before["results"][task].get(error)),
                after_error=_number(own.get(error)),
                higher_is_better=(after.get("higher_is_better", {}).get(task) or {}).get(metric),
                rows=int(after["n-samples"][task]["effective"]) if task in after["n-samples"] else None,
                change=_change(before, after, task, metric, taken),
            )


def _number(value: Any) -> float | None:
    """A standard error; the harness writes "N/A" where it has none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _change(before: Mapping[str, Any], after: Mapping[str, Any], task: str, metric: str, taken: str) -> Paired | None:
    """The paired test over the rows of a task; None where a row has no number of its own."""
    pairs = zip(*(results.get("samples", {}).get(task, ()) for results in (before, after)), strict=True)
    values = [tuple(one.get(metric) for one in pair) for pair in pairs if pair[1].get("filter", taken) == taken]
    if not values or not all(isinstance(value, int | float) for pair in values for value in pair):
        return None
    return paired_test([np.array([later - earlier for earlier, later in values], np.float64)])


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness logs what it does; its warnings are about settings that are not the user's."""
    logger = logging.getLogger(_PACKAGE)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
