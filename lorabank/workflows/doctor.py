"""The doctor: facts for a bug report, what is odd about the machine, and what is wrong with the bank."""

from __future__ import annotations

import os
import platform
import shutil
import stat
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from lorabank.bank.bank import Bank
from lorabank.bank.objects.filesystem import network_filesystem
from lorabank.bank.operations import RESUMABLE
from lorabank.core.commands import REPAIR, Command, file_word, shell_line
from lorabank.core.errors import DamagedError, LorabankError
from lorabank.core.limits import FREE_SPACE
from lorabank.core.machine.cpu import cpu_dtype, cpu_flags
from lorabank.core.records import Finding, OperationRecord
from lorabank.core.task_kinds import DEFAULT_BASE, DEFAULT_LANGUAGE_MODEL

PACKAGES = (
    "lorabank", "torch", "transformers", "tokenizers", "safetensors", "accelerate", "huggingface-hub", "numpy",
    "scipy", "pyarrow", "sqlalchemy", "alembic", "peft",
)  # fmt: skip
"""What a bug report should name."""


class Checkup(NamedTuple):
    """What the doctor found.

    Attributes:
        facts: Name and value: versions, machine, devices, the bank, its base model.
        warnings: What is odd but damages nothing by itself.
        findings: What is wrong with the bank, each with its cure.
        commands: What can be typed next beside the cures: an upgrade, an interrupted training to resume.
    """

    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    findings: tuple[Finding, ...]
    commands: tuple[Command, ...] = ()


def doctor(path: str | Path, *, full: bool = False) -> Checkup:
    """Examine machine and bank. Nothing is changed or fetched."""
    facts = [("python", f"{platform.python_version()} ({platform.platform()})")]
    facts += [(package, _version(package)) for package in PACKAGES]
    facts += [("cpu", f"{os.cpu_count()} cores, {platform.machine()}"), ("cpu dtype", cpu_dtype(cpu_flags()))]
    facts += [("devices", _devices())]
    of_bank, findings, commands = _examined(Path(path), full)
    missing = [name for name, found in facts if found == "not installed"]
    warnings = (*(f"{name} is not installed: pip install {name}" for name in missing), *_warnings(Path(path)))
    return Checkup((*facts, *of_bank), warnings, tuple(findings), tuple(commands))


def _warnings(path: Path) -> Iterator[str]:
    """What is odd about the place where the bank lies."""
    if (kind := network_filesystem(path)) is not None:
        yield (
            f"{path} is on {kind}, a network file system, where locks may not work: change a bank there from one "
            "process at a time, or better, keep it on a local disk"
        )
    if not Bank.exists(path):
        return
    free = shutil.disk_usage(path).free
    if free < 2 * FREE_SPACE:
        yield f"{path} has {free // 1024**2} MiB free: nothing can be added below {FREE_SPACE // 1024**2} MiB"
    if (mode := stat.S_IMODE(path.stat().st_mode)) & stat.S_IRWXO:
        closed = shell_line("chmod", "o-rwx", file_word(path))
        yield f"{path} is open to every user of this machine (mode {mode:o}): {closed}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    try:
        import torch
    except Exception as error:  # a broken installation is what a doctor must be able to tell
        return f"torch cannot be imported: {type(error).__name__}: {error}"
    threads = f"cpu ({torch.get_num_threads()} threads, OMP_NUM_THREADS sets how many)"
    if not torch.cuda.is_available():
        return f"{threads}, no CUDA"
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    gpus = [f"cuda:{index} {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for index, gpu in enumerate(found)]
    return ", ".join([threads, *gpus])


def _examined(path: Path, full: bool) -> tuple[list[tuple[str, str]], list[Finding], list[Command]]:
    """Facts about the bank, what is wrong with it, and what can be typed next."""
    facts = [("bank", str(path.resolve()))]
    if not Bank.exists(path) and not (path / "bank.db").exists():
        return (
            [
                *facts,
                ("bank state", "there is none"),
                ("base model", _reach(DEFAULT_BASE, None)),
                ("language model", _reach(DEFAULT_LANGUAGE_MODEL, None)),
            ],
            [],
            [],
        )
    try:
        bank = Bank.open(path)
        snapshot = bank.snapshot()
        operations = bank.operations()
    except LorabankError as error:
        facts.append(("bank state", error.message + (f" ({error.hint})" if error.hint else "")))
        if not isinstance(error, DamagedError):
            return facts, [], list(error.commands)
        cure = REPAIR, Command("restore", "BACKUP")
        return facts, [Finding("database", "bank", error.message, "repair it, or restore a backup", cure)], []
    from lorabank.bank.catalog.definitions import REVISIONS

    findings = bank.verify(full=full)
    found = len(findings)
    state = (
        f"format {snapshot.format}, schema {REVISIONS[-1]}, {len(snapshot.tasks)} tasks, "
        f"{len(snapshot.compositions)} compositions; {'full' if full else 'quick'} check: {found or 'no'} "
        f"finding{'' if found == 1 else 's'}"
    )
    facts += [
        ("bank state", state),
        ("free space", f"{shutil.disk_usage(path).free / 2**30:.1f} GiB"),
        ("operations", "; ".join(map(_operation, operations)) or "none under way"),
        ("base model", _reach(snapshot.base.name, snapshot.base.revision)),
    ]
    stopped = [one.name for one in operations if one.kind == RESUMABLE and not one.alive]
    return facts, findings, [Command("add-task", name, "--resume") for name in stopped]


def _operation(operation: OperationRecord) -> str:
    what = f"{operation.kind} {operation.name} since {operation.started_at[:19]}Z"
    if operation.alive:
        return f"{what}, process {operation.pid} on {operation.host}"
    return f"{what}, interrupted"


def _reach(name: str, revision: str | None) -> str:
    """Where a base model's files are, without fetching them."""
    from lorabank.models.bases.hub import hub_reachable
    from lorabank.models.bases.resolving import find_on_disk

    found = find_on_disk(name, revision)
    if found is not None:
        return f"{name}: {found.path} ({found.source})"
    hub = "the hub answers" if hub_reachable() else "the hub does not answer"
    return f"{name}: not on this disk, {hub}"
