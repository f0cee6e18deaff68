"""A strict reader of safetensors files, without torch.

Stricter than the format's own library: a duplicate key in the header is refused, header, tensor count and file
have limits, and values are read so that no NaN or infinity enters the bank.
Format: 8 bytes header length (little endian), a JSON header, the tensors' bytes without holes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from lorabank.core.errors import DataError
from lorabank.core.limits import MAX_FILE, MAX_HEADER, MAX_METADATA, MAX_TENSORS

_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
# Exponent bits: a value whose exponent is all ones is infinite or not a number. E4M3 has NaN only (both 0x7f, 0xff).
_NON_FINITE = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F8_E5M2": ("<u1", 0x7C), "F8_E4M3": ("<u1", 0x7F)}
_CHUNK = 1 << 22
_MAX_DIMS = 8
_SHOWN = 200
"""Characters of a name in a message: a header could hold one of a million."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of the header; ``start`` and ``end`` count bytes from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def looks_like_safetensors(data: bytes) -> bool:
    """Whether bytes begin as a safetensors file does (a blob may also be Parquet)."""
    length = int.from_bytes(data[:8], "little")
    return len(data) > 8 and data[8:9] == b"{" and 2 <= length <= len(data) - 8


def read_header(path: Path) -> tuple[TensorInfo, ...]:
    """Read and check the header of a safetensors file.

    Returns:
        The tensors in the order of their bytes.

    Raises:
        DataError: Naming the file and what is wrong with it.
    """
    with path.open("rb") as file:
        return judge_header(file, path.name)


def check_tensors(path: Path) -> tuple[TensorInfo, ...]:
    """Read a safetensors file to its end: header as in ``read_header``, and every float is finite.

    Raises:
        DataError: Naming the file, and the tensor that holds a NaN or an infinity.
    """
    with path.open("rb") as file:
        return _checked(file, path.name)


def check_tensor_bytes(data: bytes, name: str) -> tuple[TensorInfo, ...]:
    """``check_tensors`` for a file that was read already; ``name`` stands in the messages."""
    return _checked(BytesIO(data), name)


def _checked(file: BinaryIO, name: str) -> tuple[TensorInfo, ...]:
    tensors = judge_header(file, name)
    for tensor in tensors:
        if not _is_finite(file, tensor):
            _refuse(name, f"tensor {tensor.name[:_SHOWN]!r} holds values that are not finite")
    return tensors


def judge_header(file: BinaryIO, name: str) -> tuple[TensorInfo, ...]:
    """``read_header`` of an open file; nothing behind the header is read."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or length < 2 or length > size - 8:
        _refuse(name, "it is cut off or not a safetensors file")
    if length > MAX_HEADER or size > MAX_FILE:
        _refuse(name, f"its header ({length} bytes) or size ({size} bytes) is over the limit")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        _refuse(name, f"its header is not valid JSON ({error})")
    if not isinstance(header, dict):
        _refuse(name, "its header is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(name, "its metadata is not text")
    if sum(len(text.encode("utf-8", "surrogatepass")) for item in metadata.items() for text in item) > MAX_METADATA:
        _refuse(name, f"its metadata has over {MAX_METADATA} bytes")
    if len(header) > MAX_TENSORS:
        _refuse(name, f"it holds {len(header)} tensors, the limit is {MAX_TENSORS}")
    tensors = sorted((_entry(name, key, value, 8 + length) for key, value in header.items()), key=lambda t: t.start)
    _check_cover(name, tensors, 8 + length, size)
    return tuple(tensors)


def _entry(name: str, key: str, value: Any, offset: int) -> TensorInfo:
    shown = key[:_SHOWN]
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        _refuse(name, f"tensor {shown!r} needs dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        _refuse(name, f"tensor {shown!r} has the unknown dtype {str(dtype)[:_SHOWN]!r}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        _refuse(name, f"tensor {shown!r} has a shape or offsets that are not counts")
    if len(shape) > _MAX_DIMS:  # the product of 100,000 extents would take minutes
        _refuse(name, f"tensor {shown!r} has {len(shape)} dimensions, the limit is {_MAX_DIMS}")
    count = math.prod(shape)
    if offsets[1] - offsets[0] != count * _SIZES[dtype]:
        _refuse(name, f"tensor {shown!r} has {offsets[1] - offsets[0]} bytes, its shape needs {count * _SIZES[dtype]}")
    return TensorInfo(key, dtype, tuple(shape), offset + offsets[0], offset + offsets[1])


def _check_cover(name: str, tensors: list[TensorInfo], start: int, size: int) -> None:
    """The tensors fill the file from the header to the end: no hole, no overlap, nothing behind."""
    for tensor in tensors:
        if tensor.start != start:
            _refuse(name, f"there is a hole or an overlap before tensor {tensor.name[:_SHOWN]!r}")
        start = tensor.end
    if start != size:
        _refuse(name, f"it has {size} bytes, its tensors end at {start}")


def _is_finite(file: BinaryIO, tensor: TensorInfo) -> bool:
    import numpy as np

    if tensor.dtype not in ("F32", "F64", *_NON_FINITE):
        return True
    file.seek(tensor.start)
    left = tensor.end - tensor.start
    while left:
        data = file.read(min(_CHUNK, left))
        if not data:
            return False
        left -= len(data)
        if tensor.dtype in _NON_FINITE:
            kind, mask = _NON_FINITE[tensor.dtype]
            bits = np.frombuffer(data, kind)
            finite = bool(((bits & mask) != mask).all())
        else:
            finite = bool(np.isfinite(np.frombuffer(data, "<f4" if tensor.dtype == "F32" else "<f8")).all())
        if not finite:
            return False
    return True


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _refuse(name: str, reason: str) -> NoReturn:
    raise DataError(f"{name}: {reason}", unchanged="the bank was not changed")
