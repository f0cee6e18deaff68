"""What a base model is, in digests: computed from the files alone, no model is built and torch is not imported.

The fingerprint of the weights does not depend on how they are cut into files, so a re-sharded copy of a model
is the same model.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from lorabank.core.errors import DataError
from lorabank.core.files.safetensors_header import BASE, TensorInfo, judge_header

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""Every file from which transformers builds a tokenizer."""

_CHAT_TEMPLATE = "chat_template.jinja"

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Floating types of the safetensors format by their names in torch."""

_PROVENANCE = ("_name_or_path", "transformers_version")
"""Keys of config.json that say where it came from, not what the model is."""


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """What the safetensors files of a model say.

    Attributes:
        fingerprint: SHA-256 over every tensor's name, dtype, shape and bytes, sorted by name.
        dtype: Name in torch of the dtype that most weights have.
        parameters: Number of floating point weights (integer buffers are not counted).
    """

    fingerprint: str
    dtype: str
    parameters: int


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that hold a model's weights, sorted by name.

    Raises:
        DataError: There are none, or the index names a file that is not in the folder.
    """
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if not (folder / INDEX).is_file():
        raise DataError(
            f"{folder} holds no {WEIGHTS}: only safetensors weights are loaded",
            hint="convert it: AutoModel.from_pretrained(PATH).save_pretrained(NEW_PATH)",
        )
    names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise DataError(f"{folder / INDEX} names {name!r}, which is not a file in its folder")
    return tuple(folder / name for name in names)


def weight_facts(folder: Path) -> WeightFacts:
    """Read every weight once and tell the fingerprint, the dtype and the number of weights.

    Args:
        folder: A model folder in the Hugging Face layout.

    Raises:
        DataError: A file is not a valid safetensors file, or two files hold the same tensor.
    """
    digest = hashlib.sha256()
    sizes: Counter[str] = Counter()
    with ExitStack() as stack:
        tensors: dict[str, tuple[TensorInfo, memoryview]] = {}
        for path in weight_files(folder):
            try:
                file = stack.enter_context(path.open("rb"))
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from error
            header = judge_header(file, str(path), BASE)
            mapped = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            view = stack.enter_context(memoryview(mapped))
            for tensor in header:
                if tensor.name in tensors:
                    raise DataError(f"{path}: tensor {tensor.name!r} is in another file too")
                tensors[tensor.name] = tensor, view
        for _, (tensor, view) in sorted(tensors.items()):
            digest.update(json.dumps([tensor.name, tensor.dtype, tensor.shape]).encode() + b"\n")
            digest.update(view[tensor.start : tensor.end])
            if tensor.dtype in DTYPES:
                sizes[DTYPES[tensor.dtype]] += prod(tensor.shape)
    dtype = sizes.most_common(1)[0][0] if sizes else "float32"
    return WeightFacts(digest.hexdigest(), dtype, sizes.total())


def quantised_fingerprint(weights: str, quantisation: str) -> str:
    """The fingerprint of weights that lorabank quantises.

    Args:
        weights: Theirs.
        quantisation: The quantiser with all its settings.
    """
    return hashlib.sha256(json.dumps([weights, quantisation]).encode()).hexdigest()


def config_hash(config: dict[str, Any]) -> str:
    """SHA-256 of a config.json in canonical form, without the keys that only say where it came from."""
    kept = {key: value for key, value in config.items() if key not in _PROVENANCE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def tokenizer_hash(folder: Path) -> str:
    """SHA-256 over the names and bytes of the tokenizer's files.

    Raises:
        DataError: The folder holds no tokenizer.
    """
    digests = [
        (name, hashlib.sha256((folder / name).read_bytes()).hexdigest())
        for name in TOKENIZER_FILES
        if (folder / name).is_file()
    ]
    if not digests:
        raise DataError(
            f"{folder} holds no tokenizer", hint="save it beside the model: tokenizer.save_pretrained(PATH)"
        )
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files from which transformers builds the tokenizer, its chat template among them.

    Raises:
        DataError: One of them cannot be read.
    """
    try:
        return {
            name: (folder / name).read_bytes()
            for name in (*TOKENIZER_FILES, _CHAT_TEMPLATE)
            if (folder / name).is_file()
        }
    except OSError as error:
        raise DataError(f"the tokenizer in {folder} cannot be read: {error.strerror or error}") from error


def chat_template_hash(folder: Path) -> str | None:
    """SHA-256 of the chat template, None where there is none."""
    if (folder / _CHAT_TEMPLATE).is_file():
        return hashlib.sha256((folder / _CHAT_TEMPLATE).read_bytes()).hexdigest()
    path = folder / "tokenizer_config.json"
    template = read_json(path).get("chat_template") if path.is_file() else None
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        DataError: It cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} does not hold a JSON object")
    return value
