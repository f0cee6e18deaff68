"""The values of a safetensors file: no NaN or infinity enters the bank. Its header is judged first, without torch."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from lorabank.core.errors import DataError
from lorabank.core.files.safetensors_header import TensorInfo, judge_header

# Exponent bits: a value whose exponent is all ones is infinite or not a number. E4M3 has NaN only (both 0x7f, 0xff).
_NON_FINITE = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F8_E5M2": ("<u1", 0x7C), "F8_E4M3": ("<u1", 0x7F)}
_CHUNK = 1 << 22
_SHOWN = 200


def looks_like_safetensors(data: bytes) -> bool:
    """Whether bytes begin as a safetensors file does (a blob may also be Parquet)."""
    length = int.from_bytes(data[:8], "little")
    return len(data) > 8 and data[8:9] == b"{" and 2 <= length <= len(data) - 8


def check_tensors(path: Path) -> tuple[TensorInfo, ...]:
    """Read a safetensors file to its end: header as in `judge_header`, and every float is finite.

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
            raise DataError(
                f"{name}: tensor {tensor.name[:_SHOWN]!r} holds values that are not finite",
                unchanged="the bank was not changed",
            )
    return tensors


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
