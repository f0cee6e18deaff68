"""The header of a safetensors file: the one reader of it, for adapters, blobs and base models.

It is stricter than the format's own library: a key that stands twice is refused, and what a file of the bank may hold
has limits. Format: 8 bytes that hold the header's length (little endian), a JSON header, the tensors' bytes without
holes (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
from typing import Any, BinaryIO, NamedTuple, NoReturn

from lorabank.core.errors import DataError
from lorabank.core.limits import MAX_FILE, MAX_HEADER, MAX_METADATA, MAX_TENSORS

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip
_BITS_OF_BASES = _BITS | {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "C64": 64,
}  # fmt: skip
_SHOWN = 200
"""Characters of a name in a message: a header could hold one of a million."""


class TensorInfo(NamedTuple):
    """One entry of the header; ``start`` and ``end`` count bytes from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Allowed(NamedTuple):
    """What a file may have.

    Attributes:
        bytes: Of the whole file.
        header: Bytes of the header.
        metadata: Bytes of the metadata's keys and values.
        tensors: In one file.
        dimensions: Of one tensor: the product of 100,000 extents would take minutes.
        bits: Dtypes, each with the bits of one number.
    """

    bytes: int = MAX_FILE
    header: int = MAX_HEADER
    metadata: int = MAX_METADATA
    tensors: int = MAX_TENSORS
    dimensions: int = 8
    bits: dict[str, int] = _BITS


STORED = Allowed()
"""What the bank stores, and takes from strangers. Each dtype is one whose values can be judged."""

BASE = Allowed(2**63, 100_000_000, 100_000_000, 2**31, 64, _BITS_OF_BASES)
"""A base model's file: what the format's own library takes."""


def judge_header(file: BinaryIO, name: str, allowed: Allowed = STORED) -> tuple[TensorInfo, ...]:
    """Read and check the header of an open file; nothing behind the header is read.

    Args:
        file: The file, from its beginning.
        name: Stands in the messages.
        allowed: What it may have.

    Returns:
        The tensors in the order of their bytes.

    Raises:
        DataError: Naming the file and what is wrong with it.
    """
    header, size = read_header(file, name, allowed)
    return judge_tensors(header, size, name, allowed)


def read_header(file: BinaryIO, name: str, allowed: Allowed = STORED) -> tuple[bytes, int]:
    """The bytes of the header, and the size of the file.

    Raises:
        DataError: There is no whole header, or a size is over its limit.
    """
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or length < 2 or length > size - 8:
        _refuse(name, "it is truncated or not a safetensors file")
    if length > allowed.header or size > allowed.bytes:
        _refuse(name, f"its header ({length} bytes) or size ({size} bytes) is over the limit")
    return file.read(length), size


def judge_tensors(text: bytes, size: int, name: str, allowed: Allowed = STORED) -> tuple[TensorInfo, ...]:
    """The tensors that a header names, in the order of their bytes, which fill a file of a size.

    Raises:
        DataError: They do not, or one of them is not what it may be.
    """
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        _refuse(name, f"its header is not valid JSON ({error})")
    if not isinstance(header, dict):
        _refuse(name, "its header is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(name, "its metadata is not text")
    words = (word for item in metadata.items() for word in item)
    if sum(len(word.encode("utf-8", "surrogatepass")) for word in words) > allowed.metadata:
        _refuse(name, f"its metadata has over {allowed.metadata} bytes")
    if len(header) > allowed.tensors:
        _refuse(name, f"it holds {len(header)} tensors, the limit is {allowed.tensors}")
    start = 8 + len(text)
    tensors = [_entry(name, key, value, start, allowed) for key, value in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    _check_cover(name, tensors, start, size)
    return tuple(tensors)


def _entry(name: str, key: str, value: Any, offset: int, allowed: Allowed) -> TensorInfo:
    shown = key[:_SHOWN]
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        _refuse(name, f"tensor {shown!r} needs dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in allowed.bits:
        _refuse(name, f"tensor {shown!r} has the unknown dtype {str(dtype)[:_SHOWN]!r}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        _refuse(name, f"tensor {shown!r} has a shape or offsets that are not counts")
    if len(shape) > allowed.dimensions:
        _refuse(name, f"tensor {shown!r} has {len(shape)} dimensions, the limit is {allowed.dimensions}")
    bits, there = math.prod(shape) * allowed.bits[dtype], offsets[1] - offsets[0]
    if 8 * there != bits:
        _refuse(name, f"tensor {shown!r} has {there} bytes, its shape needs {bits / 8:g}")
    return TensorInfo(key, dtype, tuple(shape), offset + offsets[0], offset + offsets[1])


def _check_cover(name: str, tensors: list[TensorInfo], start: int, size: int) -> None:
    """The tensors fill the file from the header to the end: no hole, no overlap, nothing behind."""
    for tensor in tensors:
        if tensor.start != start:
            _refuse(name, f"there is a hole or an overlap before tensor {tensor.name[:_SHOWN]!r}")
        start = tensor.end
    if start != size:
        _refuse(name, f"it has {size} bytes, its tensors end at {start}")


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _refuse(name: str, reason: str) -> NoReturn:
    raise DataError(f"{name}: {reason}", unchanged="the bank was not changed")
