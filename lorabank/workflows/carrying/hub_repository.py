"""A repository on the Hugging Face hub: what it holds, one commit that changes it, a download. Errors are one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lorabank.core.errors import ConfigError, DataError, LorabankError, MissingExtraError, NotFoundError, StorageError
from lorabank.models.bases import hub
from lorabank.models.bases.quiet import first_line

_NAME = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", re.ASCII)
_GIT = ".gitattributes"
_REFUSED = (400, 413, 422)
"""Statuses of what will be refused the next time too."""


class NoRepositoryError(NotFoundError):
    """There is no such repository, or the token may not read it."""


class Held(NamedTuple):
    """What a repository holds at a commit.

    Attributes:
        commit: Its digest.
        private: Whether only its owners see it.
        files: Path in the repository to its size in bytes.
    """

    commit: str
    private: bool
    files: dict[str, int]


def check_repository(name: str, *, unchanged: str) -> str:
    """A repository's name, if it can be one.

    Args:
        name: What was given as a name.
        unchanged: What the error says stayed as it was.

    Raises:
        ConfigError: It does not have the form ``OWNER/NAME``.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"{name[:200]!r} is not the name of a repository",
            hint="it has the form OWNER/NAME",
            unchanged=unchanged,
        )
    return name


def look(name: str, revision: str | None = None, *, unchanged: str) -> Held:
    """What a repository holds; the file that the hub makes itself is left out.

    Raises:
        NoRepositoryError: There is none.
        NotFoundError: The hub cannot be asked, or there is no such revision.
        LorabankError: As of `put`.
    """
    from huggingface_hub import HfApi

    with _asking(name, revision, unchanged):
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    files = {one.rfilename: one.size or 0 for one in info.siblings or () if one.rfilename != _GIT}
    return Held(str(info.sha), bool(info.private), files)


def put(
    name: str,
    files: Mapping[str, Path | bytes],
    remove: Sequence[str],
    *,
    parent: str | None,
    private: bool,
    message: str,
) -> str:
    """Make a repository where there is none, and put files into it in one commit.

    Args:
        name: ``OWNER/NAME``.
        files: Path in the repository to a file or its content.
        remove: Paths in the repository to take out.
        parent: The commit that was looked at; the hub refuses if another one came meanwhile. None for a new one.
        private: Of a new repository.
        message: Of the commit.

    Returns:
        The commit.

    Raises:
        MissingExtraError: There is no token, or it may not write there.
        NotFoundError: The hub cannot be asked.
        DataError: The hub refuses a file, such as a model card with a license that it does not know.
        StorageError: The hub did not take the files.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if get_token() is None:
        raise MissingExtraError(
            "there is no token of the Hugging Face hub",
            hint="log in with hf auth login, or set HF_TOKEN",
            unchanged="nothing was sent",
        )
    added = [CommitOperationAdd(path, content) for path, content in files.items()]
    removed = [CommitOperationDelete(path, is_folder=False) for path in remove]
    unchanged = f"what {name} held before is unchanged"
    with _asking(name, None, unchanged):
        HfApi().create_repo(name, private=private, exist_ok=True)
        try:
            commit = HfApi().create_commit(name, [*added, *removed], commit_message=message, parent_commit=parent)
        except ValueError as error:  # what the hub says of the README.md
            raise _refused(name, str(error), unchanged) from error
        return str(commit.oid)


def fetch(name: str, commit: str, folder: Path, patterns: Sequence[str], *, unchanged: str) -> None:
    """Download the files of a commit that fit a pattern into a folder.

    Raises:
        LorabankError: As of `put`.
    """
    from huggingface_hub import HfApi

    with _asking(name, commit, unchanged):
        HfApi().snapshot_download(name, revision=commit, local_dir=folder, allow_patterns=list(patterns))


@contextmanager
def _asking(name: str, revision: str | None, unchanged: str) -> Iterator[None]:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if constants.is_offline_mode():
        raise NotFoundError(
            f"{name}: HF_HUB_OFFLINE is set, so the hub is not asked", hint="unset HF_HUB_OFFLINE", unchanged=unchanged
        )
    if not hub.hub_reachable():
        raise NotFoundError(
            f"{name}: {constants.ENDPOINT} does not answer", hint="try again later", unchanged=unchanged
        )
    try:
        with hub.no_hub_bars():
            yield
    except LorabankError:
        raise
    except RevisionNotFoundError as error:
        raise NotFoundError(f"{name} has no revision {revision!r} on the hub", unchanged=unchanged) from error
    except RepositoryNotFoundError as error:
        raise NoRepositoryError(
            f"there is no repository {name} on the hub that your token may read",
            hint="check its name, or hf auth login",
            unchanged=unchanged,
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in _REFUSED:
            raise _refused(name, error.server_message or str(error), unchanged) from error
        if status in (401, 403):
            message = f"your token of the hub may not do this with {name}: {first_line(error)}"
            raise MissingExtraError(message, hint="hf auth login", unchanged=unchanged) from error
        raise StorageError(f"{name}: {first_line(error)}", hint="try again", unchanged=unchanged) from error
    except Exception as error:  # its client raises what the libraries below it raise
        raise StorageError(f"{name}: {first_line(error)}", hint="try again", unchanged=unchanged) from error


def _refused(name: str, said: str, unchanged: str) -> DataError:
    """What the hub says of a file, in one line."""
    return DataError(
        f"{name}: the hub refuses it: {' '.join(said.split())}",
        hint="for the model card, README.md, give another --license or --dataset; --dry-run --json shows it",
        unchanged=unchanged,
    )
