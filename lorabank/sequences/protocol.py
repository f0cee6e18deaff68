"""The protocol card of a sequence: everything without which its numbers could not be compared with others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from lorabank.bank.snapshot import Snapshot
from lorabank.core.config import TrainConfig
from lorabank.core.machine.packages import package_versions
from lorabank.core.records import BaseModelRecord
from lorabank.data.methods import of_training
from lorabank.sequences.config import ROW_KEYS, Cell, SequenceConfig
from lorabank.sequences.folder import digest_of
from lorabank.sequences.references.base import NOT_STORABLE, OF_ADAPTERS
from lorabank.sequences.rows import SequenceTask
from lorabank.training.methods import filled_in
from lorabank.workflows.results import MatrixReport

_SHOWN = (
    "epochs", "learning_rate", "lr_scheduler_type", "batch_size", "gradient_accumulation_steps", "r", "lora_alpha",
    "use_rslora", "target_modules", "max_length",
)  # fmt: skip
"""Settings of a training that the card always shows; of the others it shows what is not the default."""

_UNSEEN = (*ROW_KEYS, "strategy", "seed", "penalty_weight", "device", "save_steps", "report_to")
"""Settings that are told elsewhere on the card, or decide nothing."""

_BASE = (
    "name", "source", "revision", "task_type", "dtype", "quantisation", "fingerprint", "chat_template_hash",
)  # fmt: skip
_DEFAULTS = asdict(TrainConfig())
_UNKNOWN = "not known before the training"


class Training(NamedTuple):
    """What the card tells of the training of a task.

    Attributes:
        task: The task.
        device: Where it was trained.
        versions: Of the packages that decide its outcome.
        penalties: The weight of each penalty.
        cut: Training rows that were truncated; None where it is not known.
        dropped: Training rows that were left out.
    """

    task: str
    device: str
    versions: Mapping[str, str]
    penalties: Mapping[str, float]
    cut: int | None
    dropped: int | None


@dataclass(frozen=True)
class Measured:
    """A cell of the sequence as it is now; without reports where it is not measured yet."""

    cell: Cell
    trainings: tuple[Training, ...]
    reports: tuple[MatrixReport, ...] = ()


def trainings_of(snapshot: Snapshot) -> tuple[Training, ...]:
    """The trainings whose adapters are in a bank."""
    found = []
    for task in snapshot.tasks:
        adapter, rows = snapshot.adapter_of(task.name), snapshot.dataset(task.name, "train")
        fates = (rows.rows_cut, rows.rows_dropped) if rows else (None, None)
        found.append(Training(task.name, adapter.device, adapter.versions, adapter.penalties, *fates))
    return tuple(found)


def protocol_card(
    config: SequenceConfig,
    base: BaseModelRecord,
    tasks: Mapping[str, SequenceTask],
    measured: Sequence[Measured],
    *,
    dev: bool,
) -> dict[str, Any]:
    """The card of what has been measured.

    Args:
        config: The sequence.
        base: Its base model.
        tasks: Its rows.
        measured: The banks that are there.
        dev: Whether the rows that settings are chosen on were scored.
    """
    settings = config.settings
    trainings = [training for one in measured for training in one.trainings]
    reports = [report for one in measured for report in one.reports]
    return {
        "sequence": config.name,
        "settings_sha256": digest_of(config),
        "base": {key: getattr(base, key) for key in _BASE},
        "orders": [list(order) for order in settings.orders],
        "seeds": list(settings.seeds),
        "training": [_training(config, strategy, tasks, measured) for strategy in settings.strategies],
        "compositions": [_composition(table) for table in config.document.get("compositions", [])],
        "selection": settings.selection.strip(),
        "scored_on": "rows to choose settings on" if dev else "evaluation rows",
        "forms": {name: task.data.form for name, task in tasks.items()},
        "prompts": {name: task.data.prompt_template for name, task in tasks.items()},
        "labels": {name: list(task.data.labels) for name, task in tasks.items()},
        "metrics": sorted({report.metric for report in reports}),
        "rows": {name: _rows(task, measured) for name, task in tasks.items()},
        "sample_seed": settings.sample_seed,
        "devices": {
            "training": sorted({training.device for training in trainings}),
            "scoring": sorted({f"{report.settings['device']}, {report.settings['dtype']}" for report in reports}),
        },
        "versions": _versions(trainings),
        "banks": {"measured": sum(bool(one.reports) for one in measured), "of": len(config.cells)},
        "notes": [*_notes(config, tasks)],
    }


def card_lines(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The card for people: name and value."""
    base, devices = card["base"], card["devices"]
    revision = f", revision {base['revision']}" if base["revision"] else ""
    kind = ", ".join(str(base[key]) for key in ("task_type", "dtype", "quantisation") if base[key])
    lines = [
        ("sequence", f"{card['sequence']}, settings {card['settings_sha256'][:12]}"),
        ("base model", f"{base['name']} ({base['source']}{revision}), {kind}, weights {base['fingerprint'][:12]}"),
    ]
    lines += [(f"order {number}", " → ".join(order)) for number, order in enumerate(card["orders"], start=1)]
    lines += [("trained by", line) for strategy in card["training"] for line in _training_lines(strategy)]
    lines += [("composed by", _composition_line(composition)) for composition in card["compositions"]]
    lines += [("settings chosen", card["selection"]), ("scored on", card["scored_on"])]
    lines += [("scored by", ", ".join(card["metrics"]) or _UNKNOWN)]
    for task, row in card["rows"].items():
        template = card["prompts"][task]
        labels = ", ".join(card["labels"][task])
        asked = ("the text alone" if labels else "the rows' own prompts") if template is None else repr(template)
        answers = f"labels: {labels}" if labels else card["forms"][task]
        lines.append((f"task {task}", _rows_line(row)))
        lines.append(("", f"asked: {asked}" + (f"; {answers}" if not (template and labels in template) else "")))
    lines += [("seeds", f"{', '.join(map(str, card['seeds']))}; rows sampled with {card['sample_seed']}")]
    lines += [(f"{what} on", "; ".join(found) or _UNKNOWN) for what, found in devices.items()]
    lines += [("versions", ", ".join(f"{name} {'/'.join(found)}" for name, found in card["versions"].items()))]
    lines += [("banks", f"{card['banks']['measured']} of {card['banks']['of']} measured")]
    lines += [("note", note) for note in card["notes"]]
    return lines


def _training(
    config: SequenceConfig, strategy: str, tasks: Iterable[str], measured: Sequence[Measured]
) -> dict[str, Any]:
    """A strategy's settings; tasks with equal ones stand together."""
    groups: list[dict[str, Any]] = []
    reference = config.reference(strategy)
    unseen = {*_UNSEEN, *(OF_ADAPTERS if reference else ())}
    for task in tasks:
        training = filled_in(config.training(task, strategy))
        settings = asdict(replace(training, set=of_training(training.set)))
        values = {key: value for key, value in settings.items() if key not in unseen}
        twin = next((group for group in groups if group["settings"] == values), None)
        if twin:
            twin["tasks"].append(task)
        else:
            groups.append({"tasks": [task], "settings": values})
    trainings = [training for one in measured if one.cell.strategy == strategy for training in one.trainings]
    penalties = {name: weight for training in trainings for name, weight in training.penalties.items()}
    trained = {"trained": reference.trained} if reference else {}
    return {
        "name": strategy,
        "strategy": config.method(strategy),
        "groups": groups,
        "penalties": penalties,
        **trained,
    }


def _training_lines(strategy: Mapping[str, Any]) -> Iterator[str]:
    variant = "" if strategy["name"] == strategy["strategy"] else f" ({strategy['strategy']})"
    penalties = "".join(f", {name} {weight:g}" for name, weight in strategy["penalties"].items())
    for group in strategy["groups"]:
        whom = f", {' and '.join(group['tasks'])}" if len(strategy["groups"]) > 1 else ""
        s = group["settings"]
        rate = f"learning rate {s['learning_rate']:g} ({s['lr_scheduler_type']})"
        rows = s["batch_size"] * s["gradient_accumulation_steps"]
        what = f"{strategy['trained']}, {NOT_STORABLE}" if "trained" in strategy else _adapter(s)
        others = [(key, value) for key, value in s.items() if key not in _SHOWN and value != _DEFAULTS[key]]
        more = "".join(f", {key} {value}" for key, value in others)
        whole = f"{s['epochs']:g} epochs, {rate}, batch {rows}, {what}, {s['max_length']} tokens"
        yield f"{strategy['name']}{variant}{whom}: {whole}{penalties}{more}"


def _adapter(settings: Mapping[str, Any]) -> str:
    scaling = f"alpha {settings['lora_alpha']:g}{' (rslora)' if settings['use_rslora'] else ''}"
    return f"r {settings['r']}, {scaling}, {settings['target_modules']}"


def _composition(table: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": table.get("name", table["mode"]), **table}


def _composition_line(table: Mapping[str, Any]) -> str:
    rest = [f"{key} {value}" for key, value in table.items() if key not in ("name", "mode", "on")]
    on = f" on {', '.join(table['on'])}" if "on" in table else ""
    return ", ".join([f"{table['name']} ({table['mode']}){on}", *rest])


def _rows(task: SequenceTask, measured: Iterable[Measured]) -> dict[str, Any]:
    own = [training for one in measured for training in one.trainings if training.task == task.name]
    fates = [(one.cut, one.dropped) for one in own if one.cut is not None and one.dropped is not None]
    train, evaluation = task.data.train, task.data.eval
    return {
        "train": len(train),
        "train_of": task.of[0],
        "train_sha256": train.sha256,
        "eval": len(evaluation),
        "eval_of": task.of[1],
        "eval_sha256": evaluation.sha256,
        "left_out": list(task.left_out),
        "cut": sorted({cut for cut, _ in fates}),
        "dropped": sorted({dropped for _, dropped in fates}),
    }


def _rows_line(row: Mapping[str, Any]) -> str:
    train, evaluation = (
        f"{row[split]}{f' of {row[of]}' if row[of] != row[split] else ''} {what} rows ({row[f'{split}_sha256'][:12]})"
        for split, of, what in (("train", "train_of", "training"), ("eval", "eval_of", "scored"))
    )
    fates = [f"{'/'.join(map(str, row[fate])) or '?'} {fate}" for fate in ("cut", "dropped")]
    left = (
        f"; left out for their labels: {row['left_out'][0]} and {row['left_out'][1]}" if any(row["left_out"]) else ""
    )
    return f"{train}, {', '.join(fates)}; {evaluation}{left}"


def _versions(trainings: Sequence[Training]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for versions in [training.versions for training in trainings] or [package_versions()]:
        for name, version in versions.items():
            found.setdefault(name, set()).add(version)
    return {name: sorted(versions) for name, versions in found.items()}


def _notes(config: SequenceConfig, tasks: Mapping[str, SequenceTask]) -> Iterator[str]:
    for name, task in tasks.items():
        yield from task.notes
        own = [key for key in config.given[name] if key not in (*ROW_KEYS, "dev_data", "leave_out_labels")]
        if "set" in own and not of_training(config.tasks[name].set):
            own.remove("set")
        if own:
            yield f"{name}: {', '.join(own)} set only for this task"
        template = task.data.prompt_template
        if template and re.search(rf"\b{re.escape(name)}\b", template, re.IGNORECASE):
            yield f"{name}: its prompt names the task, which tells a router the answer"
