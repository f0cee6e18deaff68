"""GGUF files as base models: converted once into an ordinary checkpoint, in a cache folder beside the hub's.

The folder is named by the file's SHA-256 and is renamed into place when it is whole. A lock spares a second process
the work; nothing but time rests on it, because some network file systems accept ``flock`` and ignore it.

Weights are dequantised into float32, which keeps every value as it is, so the checkpoint answers exactly as
transformers answers from the file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabank.core.errors import DataError, IncompatibleError, LorabankError, MissingExtraError, StorageError
from lorabank.core.machine.packages import install
from lorabank.models.bases.fingerprint import read_json, tokenizer_hash, weight_files
from lorabank.models.bases.quiet import first_line, quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MAGIC = b"GGUF"
_LINK = "model.gguf"
_STALE = 24 * 3600.0
"""Seconds after which an unfinished conversion belongs to a process that was killed."""


def converted_checkpoint(file: Path, *, notice: Callable[[str], None] | None = None) -> Path:
    """The folder with the safetensors weights, config and tokenizer of a GGUF file; made when it is not there.

    Two processes may ask at once: one converts, the other waits and takes the result. The same file gives the same
    bytes with the same version of transformers.

    Args:
        file: A GGUF file of a language model.
        notice: Called with one line before a conversion starts.

    Raises:
        DataError: It is not a GGUF file, or a broken one.
        IncompatibleError: transformers does not know its architecture, or it lacks weights.
        MissingExtraError: It is not converted yet, and the package ``gguf`` is not installed.
        StorageError: The cache folder cannot be written.
    """
    folder = checkpoint_folder(file)
    if _is_whole(folder):
        return folder
    require_gguf(file.name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not _is_whole(folder):  # another process may have made it meanwhile
                if notice is not None:
                    notice(f"converting {file.name} into safetensors weights, once: {folder}")
                _convert(file, folder)
    except OSError as error:
        raise _not_written(folder, error) from error
    return folder


def checkpoint_folder(file: Path) -> Path:
    """Where the converted checkpoint of a GGUF file lies, whether it is there or not.

    Raises:
        DataError: It is not a GGUF file.
    """
    from huggingface_hub import constants

    try:
        with file.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
        if magic != _MAGIC:
            raise DataError(f"{file} is not a GGUF file")
        status = file.stat()
        digest = _sha256(file.resolve(), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    return Path(constants.HF_HOME) / "lorabank" / "gguf" / digest


def find_converted(file: Path) -> Path | None:
    """The converted checkpoint of a GGUF file if it is there."""
    folder = checkpoint_folder(file)
    return folder if _is_whole(folder) else None


def require_gguf(what: str) -> None:
    """Refuse when the package that reads GGUF files is not installed; ``what`` is named in the message.

    Raises:
        MissingExtraError: It is not.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(f"{what} needs the package gguf to be read", hint=install("gguf"))


@cache
def _sha256(file: Path, size: int, modified: int) -> str:
    """Digest of a file; size and time make a changed file another one."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_whole(folder: Path) -> bool:
    """Whether a checkpoint has all its parts; someone may have cleared the cache by hand."""
    try:
        weight_files(folder)
        tokenizer_hash(folder)
    except DataError:
        return False
    return (folder / "config.json").is_file()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for a lock file; without one where the file system has none."""
    with path.open("ab") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert(file: Path, folder: Path) -> None:
    """Write a sibling folder and rename it; what killed processes left there is removed first."""
    from safetensors import SafetensorError

    for left in folder.parent.glob("*.part"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left)
    if folder.exists() and not _is_whole(folder):
        shutil.rmtree(folder)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", suffix=".part", dir=folder.parent))
    source, made = part / "source", part / "checkpoint"
    source.mkdir()
    # Alone in a folder of this name: the file's neighbours and place leave no trace in the checkpoint.
    (source / _LINK).symlink_to(file.resolve())
    try:
        with _undisturbed():
            model, tokenizer = _load(source, file)
            model.save_pretrained(made)
            tokenizer.save_pretrained(made)
        embeddings: Any = model.get_input_embeddings()
        _drop_foreign_tokens(made / "tokenizer.json", embeddings.num_embeddings)
        for path in made.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        try:
            made.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # else another process was faster
                raise
    except SafetensorError as error:
        raise _not_written(folder, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Nothing is fetched (transformers would look for kernels on the hub) and nothing is said."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        with quiet_transformers(), redirect_stderr(StringIO()):  # its progress bar knows no switch
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _load(source: Path, file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32 and its tokenizer, as transformers reads them from the file."""
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    # Newer versions can keep the weights in blocks, which no adapter could be trained on.
    packing = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": packing(dequantize=True)} if packing else {}
    try:
        config = AutoConfig.from_pretrained(source, gguf_file=_LINK, local_files_only=True)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.random.fork_rng(devices=[]):
            loaded: Any = auto.from_pretrained(
                source,
                gguf_file=_LINK,
                **options,
                dtype=torch.float32,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
            model, report = loaded
        tokenizer = AutoTokenizer.from_pretrained(
            source, gguf_file=_LINK, trust_remote_code=False, local_files_only=True
        )
    except ImportError as error:
        raise MissingExtraError(
            f"{file} needs a package to be read: {first_line(error)}", hint=install("gguf")
        ) from error
    except Exception as error:  # the readers of gguf, numpy and transformers raise whatever they meet
        raise _unreadable(file, error) from error
    fresh = sorted(str(key) for key in (*report["missing_keys"], *report["mismatched_keys"]))
    if fresh:
        raise IncompatibleError(f"{file} has no weights of the right shape for {fresh[0]}")
    # save_pretrained refuses a model that was read from a quantised file, although its weights are floats now.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _drop_foreign_tokens(path: Path, rows: int) -> None:
    """Take tokens without an embedding out of tokenizer.json.

    transformers builds a byte-level vocabulary with GPT-2's class, which adds its ``<|endoftext|>`` where the file
    has no such token (Llama 3).
    """
    tokenizer = read_json(path)
    foreign = {token["content"] for token in tokenizer["added_tokens"] if token["id"] >= rows}
    if foreign:
        tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < rows]
        if tokenizer["model"].get("unk_token") in foreign:
            tokenizer["model"]["unk_token"] = None
        path.write_text(json.dumps(tokenizer, ensure_ascii=False, indent=2), encoding="utf-8")


def _unreadable(file: Path, error: Exception) -> LorabankError:
    message = first_line(error)
    if "not supported" in message:
        return IncompatibleError(f"{file}: {message}")
    return DataError(f"{file} cannot be read as a GGUF file: {message}")


def _not_written(folder: Path, error: Exception) -> StorageError:
    return StorageError(
        f"the converted model cannot be written to {folder}: {first_line(error)}",
        hint="set HF_HOME to a folder with space, or give a checkpoint with safetensors weights: --base FOLDER",
    )
