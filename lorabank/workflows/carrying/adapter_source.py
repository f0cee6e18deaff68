"""Where an adapter to be imported comes from: a PEFT folder, here or on the hub, or a checkpoint; what it holds."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lorabank.bank.objects.base import StoredFile, adapter_digest
from lorabank.bank.objects.safetensors import check_tensor_bytes
from lorabank.core.config import LoralibConfig
from lorabank.core.errors import ConfigError, DataError, IncompatibleError, NotFoundError, leaving
from lorabank.core.files.safetensors_header import judge_header
from lorabank.core.limits import MAX_CONFIG, MAX_FILE
from lorabank.core.observer import Observer
from lorabank.core.records import BaseModelRecord
from lorabank.exchange.config_fields import parse
from lorabank.exchange.peft_folder import CONFIG_FILE, WEIGHTS_FILE
from lorabank.exchange.placed.loralib_checkpoint import read_loralib
from lorabank.exchange.safe_folders import read_regular
from lorabank.exchange.tuners.untrusted import ForeignTuner, read_foreign_tuner, tuner_of
from lorabank.exchange.untrusted_adapter import ForeignAdapter, read_foreign
from lorabank.models.bases.hub import cached_file, download_file
from lorabank.models.bases.resolving import plain_name

_UNCHANGED = "nothing was changed"
SAVED_AGAIN = "download the adapter again, or save it again with PEFT's save_pretrained"
"""What to do about the files of an adapter that cannot be read."""
_HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?", re.ASCII)
_SHOWN_DIGITS = 16


@dataclass(frozen=True)
class Source:
    """The files of an adapter that is not the bank's.

    Attributes:
        name: What the user called it.
        config: ``adapter_config.json``; None for a checkpoint of loralib, which is one file.
        weights: ``adapter_model.safetensors``, or the checkpoint.
        revision: Commit of one on the hub.
    """

    name: str
    config: Path | None
    weights: Path
    revision: str | None = None


@leaving(_UNCHANGED, hint="check the name and the revision, or name a local folder")
def find_source(name: str, observer: Observer) -> Source:
    """A local folder or file, else the hub's cache, else the hub; of the hub only the two files are fetched.

    Args:
        name: A folder, a file, or ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` on the hub. What is here wins.
        observer: Is told before a download.

    Raises:
        NotFoundError: It is not there, or the hub cannot be reached.
        DataError: A file on the hub is larger than what is read.
    """
    folder = Path(name)
    if folder.is_dir():
        return Source(name, folder / CONFIG_FILE, folder / WEIGHTS_FILE)
    if folder.is_file():
        return Source(name, None, folder)
    match = _HUB_ID.fullmatch(name)
    if match is None:
        raise NotFoundError(
            f"there is no folder or file {name!r}",
            hint="name a PEFT folder, OWNER/NAME[@REVISION] on the hub, or a checkpoint of loralib",
            unchanged=_UNCHANGED,
        )
    hub_id, revision = match["name"], match["revision"]

    def fetch(file: str, limit: int) -> Path:
        return cached_file(hub_id, file, revision) or download_file(
            hub_id, file, revision, observer.notice, kind="adapter", limit=limit
        )

    config, weights = fetch(CONFIG_FILE, MAX_CONFIG), fetch(WEIGHTS_FILE, MAX_FILE)
    # The cache is the user's own: it keeps a link for each file of a commit. What they lead to is read as any file is.
    return Source(name, config.resolve(), weights.resolve(), weights.parent.name)


@leaving(_UNCHANGED, hint=SAVED_AGAIN, kinds=(DataError,))
def read_source(
    source: Source | Path,
    *,
    part: int | None = None,
    ignore_unknown: bool = False,
    loralib: LoralibConfig = LoralibConfig(),
) -> tuple[ForeignAdapter | ForeignTuner, str]:
    """The adapter of a PEFT folder or a checkpoint of loralib, and a digest of its files.

    The bytes that are judged are the ones that were read: the files are not looked at again. Nothing but the two files
    counts; a link to the folder is followed, links in it are not.

    Args:
        source: Its files, or the folder that holds them.
        part: Of several tasks in one file the number of the one that is wanted.
        ignore_unknown: Pass over unknown fields of the config.
        loralib: What a checkpoint of loralib does not hold.

    Raises:
        DataError: A file is missing, no regular file, too large, or not what a LoRA adapter consists of.
        ConfigError: There is no such part, or a setting is missing or does not belong to this form.
    """
    if isinstance(source, Path):
        source = Source(str(source), source / CONFIG_FILE, source / WEIGHTS_FILE)
    if source.config is None:
        if ignore_unknown:
            raise ConfigError(
                "--ignore-unknown: a checkpoint of loralib has no config, whose fields could be unknown",
                hint="leave --ignore-unknown out",
                unchanged=_UNCHANGED,
            )
        return _read_checkpoint(source, part, loralib)
    if loralib != LoralibConfig():
        option = "--alpha" if loralib.alpha is not None else "--enable-lora"
        raise ConfigError(
            f"{option} is for checkpoints of loralib, and {source.name!r} is a PEFT folder, whose config says it",
            hint=f"leave {option} out",
            unchanged=_UNCHANGED,
        )
    config = read_regular(source.config, MAX_CONFIG, unchanged=_UNCHANGED)
    weights = read_regular(source.weights, MAX_FILE, unchanged=_UNCHANGED, judge=judge_header)
    if config is None:
        _refuse(f"{source.config} is missing: the folder is not a PEFT adapter")
    if weights is None:
        pickled = source.weights.with_suffix(".bin")
        if pickled.exists():
            _refuse(f"{pickled} is a pickle, which could run code: it is never read", "save it as safetensors")
        _refuse(f"{source.weights} is missing: the folder is not a PEFT adapter")
    check_tensor_bytes(weights, WEIGHTS_FILE)
    files = [
        StoredFile(name, hashlib.sha256(data).hexdigest(), len(data))
        for name, data in ((CONFIG_FILE, config), (WEIGHTS_FILE, weights))
    ]
    fields = parse(config)
    if (name := tuner_of(fields)) and part is not None:
        raise ConfigError(f"--part {part}: a {name} holds one task", hint="leave --part out", unchanged=_UNCHANGED)
    if name:
        return read_foreign_tuner(fields, weights, name, ignore_unknown=ignore_unknown), adapter_digest(files)
    return read_foreign(fields, weights, part=part, ignore_unknown=ignore_unknown), adapter_digest(files)


def _read_checkpoint(source: Source, part: int | None, loralib: LoralibConfig) -> tuple[ForeignAdapter, str]:
    """As `read_source`, of one file with the state dict of loralib."""
    path = source.weights
    if path.suffix != ".safetensors":
        _refuse(
            f"{path} is not a safetensors file; pickles (.pt, .bin), which could run code, are never read",
            "save it as safetensors: safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE)",
        )
    if part is not None:
        raise ConfigError(
            f"--part {part}: a checkpoint of loralib holds one adapter", hint="leave --part out", unchanged=_UNCHANGED
        )
    weights = read_regular(path, MAX_FILE, unchanged=_UNCHANGED, judge=judge_header)
    if weights is None:
        _refuse(f"{path} is not there any more")
    check_tensor_bytes(weights, path.name)
    file = StoredFile(path.name, hashlib.sha256(weights).hexdigest(), len(weights))
    return read_loralib(weights, path.name, loralib), adapter_digest([file])


def check_source_base(adapter: ForeignAdapter | ForeignTuner, base: BaseModelRecord, fingerprint: str | None) -> None:
    """Whether the adapter was trained on the bank's base model, as far as anybody can say.

    Shapes do not tell: an adapter of another model of the same shape loads and answers nonsense. So the config must
    name the bank's base model, as the bank or as an export of it names it, or the user must give the fingerprint of
    the weights that the adapter was trained on.

    Raises:
        IncompatibleError: The names differ and no fingerprint is given, or the fingerprint is another one.
    """
    shown = base.fingerprint[:_SHOWN_DIGITS]
    if fingerprint is not None:
        if len(fingerprint) < _SHOWN_DIGITS or not base.fingerprint.startswith(fingerprint.lower()):
            raise IncompatibleError(
                f"--base-fingerprint {fingerprint[:64]!r} is not that of the bank's base model, {shown}...",
                hint=f"the first {_SHOWN_DIGITS} digits or more of the fingerprint that init and list --json show",
                unchanged=_UNCHANGED,
            )
    elif adapter.base_model not in (base.name, plain_name(base)):
        named = f"names the base model {adapter.base_model[:256]!r}" if adapter.base_model else "names no base model"
        raise IncompatibleError(
            f"the adapter {named}, the bank's is {base.name!r}",
            hint=f"if the weights are the same: --base-fingerprint {shown}",
            unchanged=_UNCHANGED,
        )


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise DataError(message, hint=hint, unchanged=_UNCHANGED)
