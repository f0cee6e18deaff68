"""Models and adapters on the Hugging Face hub: what the cache holds, and downloads.

The hub is asked once, with a limit of 1.5 seconds, before anything that would retry. With ``HF_HUB_OFFLINE``
set it is not asked at all. What is in the cache is used as it is; the hub is not asked for something newer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from lorabank.core.errors import DataError, NotFoundError
from lorabank.models.bases.fingerprint import tokenizer_hash, weight_files
from lorabank.models.bases.quiet import first_line

Notice = Callable[[str], None]

_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def hub_reachable(timeout: float = 1.5) -> bool:
    """Whether the hub answers; decided within ``timeout`` seconds, name look-up and proxy included.

    A thread asks because neither the name look-up nor a host with several addresses keeps to a socket's timeout.
    """
    from huggingface_hub import constants

    answered = threading.Event()

    def ask() -> None:
        try:
            with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=timeout):
                answered.set()
        except HTTPError as error:  # "no" is an answer, a gateway's "not now" is none
            if error.code < 500:
                answered.set()
        except (OSError, HTTPException, ValueError):
            pass

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout)
    return answered.is_set()


def cached_model(name: str, revision: str | None) -> Path | None:
    """The cached snapshot, None where there is none or an interrupted download left it incomplete.

    Raises:
        NotFoundError: The name is not a hub id.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, revision=revision, local_files_only=True))
        weight_files(path)
        tokenizer_hash(path)
    except HFValidationError as error:
        raise _no_id(name) from error
    except (LocalEntryNotFoundError, DataError):
        return None
    return path if (path / "config.json").is_file() else None


def cached_file(name: str, file: str, revision: str | None) -> Path | None:
    """A cached file of a hub model, None where it is not.

    Raises:
        NotFoundError: The name is not a hub id.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        return Path(hf_hub_download(name, file, revision=revision, local_files_only=True))
    except HFValidationError as error:
        raise _no_id(name) from error
    except EntryNotFoundError:
        return None


def download_model(name: str, revision: str | None, notice: Notice | None) -> Path:
    """Fetch config, safetensors weights and tokenizer of a hub model; the folder's name is the commit.

    Raises:
        NotFoundError: It cannot be reached, or is not there.
    """
    from huggingface_hub import snapshot_download

    with _asking(name, None, revision, notice):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=["*/*"]))


def download_file(
    name: str,
    file: str,
    revision: str | None,
    notice: Notice | None,
    *,
    kind: str = "base model",
    limit: int | None = None,
) -> Path:
    """Fetch one file of a hub model.

    Args:
        name: Hub id.
        file: The file's name in the repository.
        revision: Commit, tag or branch.
        notice: Called with one line before the download starts.
        kind: What the messages call it.
        limit: The maximum number of bytes that are fetched.

    Raises:
        NotFoundError: It cannot be reached, or is not there.
        DataError: It is larger than ``limit``.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    with _asking(name, file, revision, notice, kind=kind):
        if limit is not None:
            size = get_hf_file_metadata(hf_hub_url(name, file, revision=revision)).size
            if size is None or size > limit:
                raise DataError(f"{kind} {name!r}: {file} has {size} bytes, the limit is {limit}")
        return Path(hf_hub_download(name, file, revision=revision))


@contextmanager
def _asking(
    name: str, file: str | None, revision: str | None, notice: Notice | None, *, kind: str = "base model"
) -> Iterator[None]:
    """A download: not begun when the hub cannot be asked, without bars, its errors in one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision!r}" if revision else ""
    what = f"file {file!r} of {kind} {name!r}{at}" if file else f"{kind} {name!r}{at}"
    if constants.is_offline_mode():
        raise _unavailable(f"{what} is not in the Hugging Face cache and HF_HUB_OFFLINE is set", kind)
    if not hub_reachable():
        raise _unavailable(f"{what} is neither a folder nor cached, and {constants.ENDPOINT} does not answer", kind)
    if notice is not None:
        notice(f"downloading {kind} {name}{f' ({file})' if file else ''} from {constants.ENDPOINT}")
    try:
        with no_hub_bars():
            yield
    except GatedRepoError as error:
        raise NotFoundError(f"{kind} {name!r} is gated on the hub", hint="hf auth login") from error
    except RevisionNotFoundError as error:
        raise NotFoundError(f"{kind} {name!r} has no revision {revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise _unavailable(f"there is no {kind} {name!r} on the hub", kind) from error
    except EntryNotFoundError as error:
        raise NotFoundError(f"{kind} {name!r}{at} has no file {file!r} on the hub") from error
    except (HfHubHTTPError, OSError) as error:
        raise _unavailable(f"{what} could not be downloaded: {first_line(error)}", kind) from error


@contextmanager
def no_hub_bars() -> Iterator[None]:
    """The hub's client shows no progress bars; they are put back at the end."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _no_id(name: str) -> NotFoundError:
    return NotFoundError(
        f"no base model at {name!r}: no such folder, and not a hub id",
        hint="check the path, or give a hub id of the form OWNER/NAME",
        unchanged="nothing was changed",
    )


def _unavailable(message: str, kind: str) -> NotFoundError:
    option = "--base " if kind == "base model" else ""
    return NotFoundError(message, hint=f"give a local folder: {option}FOLDER")
