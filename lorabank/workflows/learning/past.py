"""The past of a training: what of the bank decides an adapter's bytes beside its own rows and settings.

It is recorded with the reservation before the first step. An interrupted run is resumed in this very past or not at
all: its checkpoints descend from it, and later tasks trust the record that says what an adapter was trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from lorabank.bank.snapshot import Snapshot
from lorabank.core.commands import Command
from lorabank.core.config import InitConfig, TrainConfig
from lorabank.core.errors import DamagedError
from lorabank.core.records import AdapterRecord
from lorabank.core.settings import validate
from lorabank.core.shelves import ALONE
from lorabank.core.states import needed, refuse_tuners
from lorabank.data.loading import TaskData
from lorabank.training.methods import filled_in
from lorabank.training.strategies.base import Strategy
from lorabank.workflows.learning.replayed import rows_before

KEY = "past"
"""Where the reservation's settings hold it."""


def earlier_adapters(snapshot: Snapshot | None) -> list[AdapterRecord]:
    """The adapters of the ready tasks, in sequence order; none where there is no bank."""
    return [snapshot.adapter_of(task.name) for task in snapshot.tasks] if snapshot else []


def check_past(snapshot: Snapshot | None, strategy: Strategy) -> None:
    """Refuse a strategy that needs the factors of earlier adapters where one has none.

    Raises:
        IncompatibleError: Naming the task.
    """
    if strategy.earlier != "off":
        what = f"strategy {strategy.name!r} needs A and B of every earlier adapter"
        again = Command("add-task", "NAME", "--data", "FILE", "--strategy", ALONE)
        refuse_tuners(earlier_adapters(snapshot), what, again, hint=f"--strategy {ALONE}, or a bank of its own")


def past_of(snapshot: Snapshot, strategy: Strategy) -> dict[str, Any]:
    """The past as JSON values: digests alone, so that nothing is read for it.

    Returns:
        ``base`` (fingerprint), ``position`` (the task's, which its first factors are drawn by), ``tasks`` (each
        earlier one with its adapter and a digest of its state), ``context``, ``continued``,
        ``replayed`` (what decides which rows of earlier tasks are trained on again, and how), ``objects`` (by role).
    """
    earlier = earlier_adapters(snapshot)
    replays = strategy.drawn(rows_before(snapshot)) > 0
    roles = (*strategy.needs, *strategy.reads)
    return _as_stored(
        {
            "base": snapshot.base.fingerprint,
            "position": len(snapshot.by_position) + 1,
            "tasks": [[snapshot.task(adapter.task).born, *_state(needed(adapter))] for adapter in earlier],
            "context": strategy.context(earlier),
            "continued": strategy.continued(earlier),
            "replayed": [_replayed(snapshot, adapter) for adapter in earlier] if replays else [],
            "objects": {
                role: [
                    [*_state(needed(adapter)), adapter.objects[role]] for adapter in earlier if role in adapter.objects
                ]
                for role in roles
            },
        }
    )


def _state(digests: Sequence[str]) -> list[str]:
    """The adapters of a task's state in two words, however many they are: its own, which is the last, and all."""
    return [*digests[-1:], hashlib.sha256("\n".join(digests).encode()).hexdigest()]


def _in_short(past: Mapping[str, Any]) -> dict[str, Any]:
    """The past of a run as this version records it; older ones recorded every adapter of each state."""
    if "earlier" not in past:
        return dict(past)
    return {
        "position": _drawn_as(past),
        **{key: value for key, value in past.items() if key != "earlier"},
        "tasks": [[name, *_state(digests)] for name, *digests in past["earlier"]],
        "objects": {
            role: [[*_state(digests), blob] for *digests, blob in entries]
            for role, entries in past.get("objects", {}).items()
        },
    }


def digests_of(data: TaskData) -> dict[str, str]:
    """The digests of a run's rows by split: those for training and evaluation, and those that are held out."""
    held = {} if data.held is None else {"held": data.held.sha256}
    return {"train": data.train.sha256, "eval": data.eval.sha256, **held}


def recorded_run(name: str, stored: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings of an interrupted run, and the digests of its rows by split, as far as its version recorded them.

    Raises:
        DamagedError: Its reservation lacks the settings, or the rows for training or evaluation.
    """
    try:
        held = {"held": stored["held"]} if "held" in stored else {}
        return recorded_config(stored["config"]), {"train": stored["train"], "eval": stored["eval"], **held}
    except KeyError as error:
        raise DamagedError(
            f"the reservation of add-task {name!r} lacks {error.args[0]!r}, so it cannot be resumed",
            commands=[Command("add-task", name, "--data", "FILE", "--restart")],
            unchanged="the bank was not changed",
        ) from error


def recorded_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an interrupted run under their present names."""
    older = {"chat_template": "none"} if "max_new_tokens" in config else {}
    # One of a version that had the second setting and not yet the first took prompts as they are.
    return asdict(validate(TrainConfig, older | dict(config), where="the interrupted run"))


def moved_on(stored: Mapping[str, Any], now: Mapping[str, Any], snapshot: Snapshot) -> str | None:
    """What is other in the bank than when a run began, in words; None where its past is unchanged.

    Args:
        stored: The reservation's settings.
        now: `past_of` the bank as it is.
        snapshot: The same bank.
    """
    if KEY not in stored:
        if not snapshot.by_position:
            return None  # no adapter was ever stored here: there is no past to differ
        return "an earlier version of lorabank began it and did not record what it was trained on top of"
    then = _in_short(stored[KEY])
    if then == now:
        return None
    tasks_then, tasks_now = ([entry[0] for entry in past.get("tasks", ())] for past in (then, now))
    if tasks_then != tasks_now:
        return f"it began after {_listed(tasks_then)}, and now there is {_listed(tasks_now)}"
    others = [a[0] for a, b in zip(then.get("tasks", ()), now["tasks"], strict=True) if a != b]
    if others:
        return f"{_listed(others)} had another adapter when it began"
    if then.get("position") != now["position"]:
        return f"it began as task number {then.get('position')}, and the next one is number {now['position']}"
    parts = [key for key in now if then.get(key) != now[key]]
    return f"when it began the bank had another {', '.join(parts) or 'past'}"


def restart_command(name: str, config: TrainConfig, *, restart: bool) -> Command:
    """What to type to train with the same settings from the first step on."""
    words = ["add-task", name, *(["--restart"] if restart else [])]
    usual = replace(config, learning_rate=None)
    if filled_in(usual) == config:
        config = usual
    return Command(*words, *typed(config))


def typed(config: TrainConfig | InitConfig) -> list[str]:
    """The options that give these settings; defaults are left out."""
    words: list[str] = []
    for field in fields(config):
        value, dashed = getattr(config, field.name), field.name.replace("_", "-")
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{dashed}" if value else f"--no-{dashed}")
        else:
            several = isinstance(value, tuple)
            option = dashed.removesuffix("s") if several else dashed  # in the singular where it may be repeated
            words += [word for one in (value if several else (value,)) for word in (f"--{option}", str(one))]
    return words


def _drawn_as(past: Mapping[str, Any]) -> int:
    """The position by which a run drew its factors whose past has none: versions that wrote it counted adapters."""
    return len({digest for _, *digests in past["earlier"] for digest in digests}) + 1


def _replayed(snapshot: Snapshot, adapter: AdapterRecord) -> list[Any]:
    task, train = snapshot.task(adapter.task), snapshot.dataset(adapter.task, "train")
    kept = snapshot.dataset(adapter.task, "replay")
    form = [list(task.labels), task.prompt_template, adapter.config.get("max_length")]
    return [task.born, kept.blob if kept else None, train.rows if train else 0, adapter.seed, adapter.digest, form]


def _listed(tasks: Sequence[str]) -> str:
    return ", ".join(tasks) or "no task"


def _as_stored(value: dict[str, Any]) -> dict[str, Any]:
    """With tuples as the lists that JSON gives back."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain
