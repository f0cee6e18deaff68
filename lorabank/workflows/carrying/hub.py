"""``push`` and ``pull``: a task, a composition or a whole bank as a repository on the hub, and a bank back from it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from lorabank.bank.snapshot import Snapshot
from lorabank.core.commands import Command
from lorabank.core.errors import (
    ConfigError,
    DamagedError,
    DataError,
    ExistsError,
    IncompatibleError,
    LorabankError,
    NotFoundError,
)
from lorabank.core.observer import BARS, Observer
from lorabank.workflows.open_bank import OpenBank

_MANIFEST, _ADAPTER, _CARD = "bank.json", "adapter_config.json", "README.md"
_OF_A_BANK = (_MANIFEST, "bank.db", "adapters/*", "blobs/*")
_UNCHANGED = "nothing was sent"
_AGAIN = "ask its owner to push it again, or pull an earlier --revision"
_OTHER = "name another repository"


class PushResult(NamedTuple):
    """What was sent, or would be.

    Attributes:
        repository: ``OWNER/NAME``.
        what: ``"task NAME"``, ``"composition NAME"`` or ``"bank"``.
        files: Path in the repository to its size in bytes.
        card: The model card.
        private: Whether a repository that is made is private.
        commit: The commit, None if nothing was sent.
    """

    repository: str
    what: str
    files: dict[str, int]
    card: str
    private: bool
    commit: str | None


class PullResult(NamedTuple):
    """What was fetched.

    Attributes:
        path: The bank's folder.
        commit: Of the repository.
        tasks: The bank's tasks.
        base: Name of its base model, which is not in the repository.
        older_schema: The bank's schema revision if an upgrade must follow; else None.
    """

    path: str
    commit: str
    tasks: tuple[str, ...]
    base: str
    older_schema: str | None


def push(
    opened: OpenBank,
    repository: str,
    *,
    task: str | None = None,
    composition: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    public: bool = False,
    dry_run: bool = False,
    observer: Observer = BARS,
) -> PushResult:
    """Send the bank, or one task or composition as a PEFT folder, to a repository on the hub, in one commit.

    A repository that is made is private. One that is there must hold this bank, or an adapter, and be private too,
    unless ``public``; what it held stays in its history.

    Args:
        opened: The bank.
        repository: ``OWNER/NAME``.
        task: Send only this task, as it answers now.
        composition: Send only this composition, if it is a single adapter.
        license: For the model card, as the hub spells it, such as ``apache-2.0``.
        datasets: Data sets of the hub for the card; those that rows were read from are known.
        public: Let everybody see a repository that is made.
        dry_run: Send nothing and ask nobody.
        observer: Gets notices.

    Raises:
        ConfigError: The composition is not a single adapter, or the name is not that of a repository.
        ExistsError: The repository holds something else, or everybody can see it.
        DataError: The hub refuses a file, such as a model card with a license that it does not know.
        MissingExtraError: There is no token, or it may not write there.
        NotFoundError: There is no such task or composition, or the hub does not answer.
        DamagedError: The bank is damaged.
    """
    from lorabank.workflows.carrying.hub_repository import NoRepositoryError, check_repository, look, put

    check_repository(repository, unchanged=_UNCHANGED)
    if task is not None and composition is not None:
        raise ConfigError("--task and --composition exclude each other", unchanged=_UNCHANGED)
    snapshot, name = opened.snapshot, task or composition
    _check_kind(snapshot, task, composition)
    with _adapter_files(opened, name, repository) if name else _bank_files(opened, repository) as files:
        card = _card(opened, files[_CARD], name, composition is not None, repository, license, datasets)
        files = {**files, _CARD: card}
        what = "bank" if name is None else f"{'task' if task else 'composition'} {name}"
        sizes = {path: _size(content) for path, content in sorted(files.items())}
        result = PushResult(repository, what, sizes, card.decode(), not public, None)
        if dry_run:
            return result
        there: Mapping[str, int] = {}
        parent: str | None = None
        try:
            held = look(repository, unchanged=_UNCHANGED)
        except NoRepositoryError:
            pass  # it is made
        else:
            there, parent = held.files, held.commit
            _check_held(repository, there, _MANIFEST if name is None else _ADAPTER)
            if not held.private and not public:
                raise ExistsError(
                    f"{repository} is public", hint="everybody would see it: --public", unchanged=_UNCHANGED
                )
            if name is None:
                _check_same_bank(repository, held.commit, opened.bank.id)
        observer.notice(f"sending {len(files)} files ({sum(sizes.values()) / 2**20:.1f} MiB) to {repository}")
        stale = sorted(there.keys() - files.keys())
        commit = put(repository, files, stale, parent=parent, private=not public, message=f"Push {what}")
        return result._replace(commit=commit)


def pull(target: Path, repository: str, *, revision: str | None = None, observer: Observer = BARS) -> PullResult:
    """Fetch a bank from a repository on the hub; every row and file is checked before the folder is there.

    Args:
        target: A folder that does not exist or is empty.
        repository: ``OWNER/NAME``.
        revision: Commit, tag or branch; default: the newest.
        observer: Gets notices.

    Raises:
        ExistsError: There is something in the folder.
        NotFoundError: There is no such repository or revision, or the hub does not answer.
        IncompatibleError: The repository does not hold a bank, or a newer lorabank wrote it.
        DamagedError: What was fetched is not what the bank recorded.
    """
    from lorabank.bank.failures import reported
    from lorabank.bank.objects.layout import Layout
    from lorabank.bank.objects.store import check_space
    from lorabank.bank.upkeep.restore import restore
    from lorabank.exchange.safe_folders import new_parents
    from lorabank.workflows.carrying.hub_repository import check_repository, fetch, look

    target = Path(os.path.abspath(target))
    unchanged = f"{target} was not made"
    check_repository(repository, unchanged=unchanged)
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise ExistsError(f"{target} is not empty", hint="name another folder with --bank", unchanged=unchanged)
    held = look(repository, revision, unchanged=unchanged)
    if _MANIFEST not in held.files:
        if _ADAPTER in held.files:
            raise IncompatibleError(
                f"{repository} holds an adapter, not a bank",
                hint="take it into a bank",
                commands=[Command("import", repository, "--task", "NAME", "--data", "FILE")],
                unchanged=unchanged,
            )
        raise IncompatibleError(f"{repository} does not hold a bank of lorabank", unchanged=unchanged)
    with (
        reported(target, unchanged=unchanged),
        new_parents(target),
        tempfile.TemporaryDirectory(prefix=f".{target.name[:200]}.", dir=target.parent) as work,
    ):
        size = sum(size for path, size in held.files.items() if any(fnmatch(path, one) for one in _OF_A_BANK))
        check_space(target.parent, size)
        observer.notice(f"fetching {repository} at {held.commit[:12]} ({size / 2**20:.1f} MiB)")
        copy, made = Path(work, "copy"), Path(work, "bank")
        fetch(repository, held.commit, copy, _OF_A_BANK, unchanged=unchanged)
        with _about(repository, held.commit, (copy, made), unchanged):
            done = restore(Layout(made), copy, incomplete=False, dry_run=False)
            base = "" if done.older_schema else OpenBank(made).snapshot.base.name
        os.rename(made, target)
    return PullResult(str(target), held.commit, done.back, base, done.older_schema)


@contextmanager
def _about(
    repository: str, commit: str, folders: Sequence[Path], unchanged: str, hint: str = _AGAIN
) -> Iterator[None]:
    """Errors about temporary folders are about what was fetched into them."""
    try:
        yield
    except LorabankError as error:
        said = error.message
        for folder in folders:
            said = said.replace(str(folder), repository)
        if not isinstance(error, DamagedError | DataError | NotFoundError):
            raise type(error)(said, hint=error.hint, unchanged=unchanged) from error
        raise DamagedError(
            f"{repository} at {commit[:12]} is damaged: {said}",
            hint=hint,
            unchanged=unchanged,
        ) from error


@contextmanager
def _bank_files(opened: OpenBank, repository: str) -> Iterator[dict[str, Path | bytes]]:
    from lorabank.bank.objects.layout import Layout
    from lorabank.bank.upkeep.backup import files_of_copy
    from lorabank.workflows.carrying.hub_card import bank_card

    with files_of_copy(Layout(opened.bank.path)) as files:
        yield {**files, _CARD: bank_card(opened.snapshot, repository)}


@contextmanager
def _adapter_files(opened: OpenBank, name: str, repository: str) -> Iterator[dict[str, Path | bytes]]:
    from lorabank.workflows.carrying.export import export

    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "adapter")
        export(
            opened.bank.path,
            name,
            folder,
            state=None,
            own=False,
            check=None,
            tokenizer=False,
            merged=False,
            dtype=None,
            repository=repository,
        )
        yield {path.name: path.read_bytes() for path in folder.iterdir()}


def _card(
    opened: OpenBank,
    page: Path | bytes,
    name: str | None,
    composed: bool,
    repository: str,
    license: str | None,
    datasets: Sequence[str],
) -> bytes:
    from lorabank.workflows.carrying.hub_card import with_results
    from lorabank.workflows.publish import stored_reports
    from lorabank.workflows.scored import AsTrained

    assert isinstance(page, bytes)
    snapshot = opened.snapshot
    reports = stored_reports(opened.bank, snapshot)
    if name is not None:
        subject = name if composed else AsTrained.name
        reports = [report for report in reports if report.subject == subject]
    tasks = [name] if name and not composed else [task.name for task in snapshot.tasks]
    return with_results(
        page, snapshot, reports, tasks=tasks, repository=repository, license=license, datasets=datasets
    )


def _check_kind(snapshot: Snapshot, task: str | None, composition: str | None) -> None:
    """That a task is named as a task, and a composition as one."""
    if task is not None:
        snapshot.task(task)
    if composition is not None:
        snapshot.composition(composition)


def _check_held(repository: str, there: Mapping[str, int], marker: str) -> None:
    """A repository that holds something else is left alone."""
    if there.keys() - {_CARD} and marker not in there:
        other = min(there.keys() - {_CARD})
        raise ExistsError(f"{repository} holds something else: {other[:200]!r}", hint=_OTHER, unchanged=_UNCHANGED)


def _check_same_bank(repository: str, commit: str, identifier: str) -> None:
    from lorabank.bank.objects.layout import Layout
    from lorabank.bank.objects.manifest import read_manifest
    from lorabank.workflows.carrying.hub_repository import fetch

    with tempfile.TemporaryDirectory() as work:
        fetch(repository, commit, Path(work), (_MANIFEST,), unchanged=_UNCHANGED)
        with _about(repository, commit, (Path(work),), _UNCHANGED, _OTHER):
            found = read_manifest(Layout(Path(work)))["id"]
    if found != identifier:
        raise ExistsError(f"{repository} is another bank ({found[:12]})", hint=_OTHER, unchanged=_UNCHANGED)


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
