"""The base model of a bank: described from settings, checked, and the bank made on it."""

from __future__ import annotations

import os
from pathlib import Path

from lorabank.bank.bank import Bank
from lorabank.bank.objects.filesystem import network_filesystem
from lorabank.core.config import InitConfig, TrainConfig
from lorabank.core.errors import IncompatibleError
from lorabank.core.observer import Observer
from lorabank.core.records import BaseModelRecord
from lorabank.core.shelves import TASK_TYPES
from lorabank.core.task_kinds import generating
from lorabank.data.forms.base import load_form
from lorabank.data.loading import detect_form
from lorabank.models.bases.architecture import check_quantisable, load_config
from lorabank.models.bases.loading import describe_base
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.bases.quantised.recipe import in_full
from lorabank.models.bases.resolving import default_base, resolve_base
from lorabank.workflows.open_bank import OpenBank


def init_bank(path: str | Path, config: InitConfig, observer: Observer) -> Bank:
    """Make a bank; the base model is described, not loaded."""
    return _make(path, described(config, observer), observer)


def described(config: InitConfig, observer: Observer | None = None, *, form: str | None = None) -> BaseModelRecord:
    """The base model that the settings name; without one the default of the task type, or of the data's form."""
    task_type = config.task_type
    if config.base is None and config.gguf_file is None and task_type == "auto":
        task_type = next(iter(TASK_TYPES)) if form is None or load_form(form).labelled else generating().name
    resolved = resolve_base(
        config.base or (None if config.gguf_file else default_base(task_type)),
        config.revision,
        gguf_file=config.gguf_file,
        typed=bool(config.base or config.gguf_file),
        notice=observer.notice if observer else None,
    )
    record = describe_base(resolved, task_type, config.quantise)
    if config.quantise is not None:
        check_quantisable(load_config(resolved), record.task_type, record.name)
    return record


def open_or_init(opened: OpenBank, config: InitConfig, observer: Observer) -> bool:
    """Make the bank when there is none, on the base that `future_base` found; a named base must be the bank's.

    Returns:
        Whether it was made.
    """
    if opened.exists:
        check_base(opened.path, opened.refresh().base, config)
        return False
    base = opened.base.record
    _make(opened.path, base, observer)
    observer.notice(f"made a bank at {opened.path} with the base model {base.name} ({base.source}, {base.task_type})")
    return True


def future_base(opened: OpenBank, config: TrainConfig, init: InitConfig, observer: Observer | None = None) -> OpenBase:
    """The base model of the bank, or of the bank that would be made; nothing is written."""
    if not opened.exists:
        named = init.base or init.gguf_file or init.task_type != "auto"
        opened.intend(OpenBase(described(init, observer, form=detect_form(config, decides=not named))))
        return opened.base
    check_base(opened.path, opened.refresh().base, init)
    return opened.base


def check_base(path: str | Path, base: BaseModelRecord, config: InitConfig) -> None:
    """Refuse a named base model or task type that is not the bank's."""
    named = "/".join(part.rstrip("/") for part in (config.base, config.gguf_file) if part) or None
    if named is not None and base.name not in (named, str(Path(os.path.expanduser(named)).resolve())):
        problem = f"the base model of the bank at {path} is {base.name!r}, not {named!r}"
    elif config.task_type not in ("auto", base.task_type):
        problem = f"the task type of the bank at {path} is {base.task_type}, not {config.task_type}"
    elif config.quantise is not None and in_full(config.quantise) != base.quantisation:
        kept = f"quantised by {base.quantisation}" if base.quantisation else "without quantisation"
        problem = f"the bank at {path} keeps its base model {kept}; --quantise asks for {in_full(config.quantise)}"
    else:
        return
    raise IncompatibleError(
        problem,
        unchanged="nothing was changed",
        hint="leave out --base, --task-type and --quantise, or make another bank with --bank",
    )


def _make(path: str | Path, base: BaseModelRecord, observer: Observer) -> Bank:
    bank = Bank.create(path, base)
    if (kind := network_filesystem(Path(path))) is not None:
        observer.notice(
            f"{path} is on {kind}, a network file system, where locks may not work: change this bank from one process "
            "at a time, or better, keep it on a local disk"
        )
    return bank
