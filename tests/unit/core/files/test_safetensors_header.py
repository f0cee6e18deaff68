"""The one reader of safetensors headers, against the format's own library. What it refuses: bank/objects."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open

from lorabank.core.errors import DataError
from lorabank.core.files.safetensors_header import BASE, STORED, judge_header

DTYPES = [
    "BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ",
    "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64",
]  # fmt: skip


def packed(header: dict[str, Any], size: int) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_base_may_hold_what_the_library_reads_and_in_as_many_bytes(tmp_path: Path, dtype: str) -> None:
    read = set()
    for size in range(1, 33):
        data = packed({"a": entry(dtype, [4], 0, size)}, size)
        (tmp_path / "x.safetensors").write_bytes(data)
        try:
            with safe_open(tmp_path / "x.safetensors", "numpy"):
                read.add(size)
        except SafetensorError:
            with pytest.raises(DataError):
                judge_header(BytesIO(data), "x", BASE)
        else:
            (tensor,) = judge_header(BytesIO(data), "x", BASE)
            assert (tensor.dtype, tensor.shape, tensor.end - tensor.start) == (dtype, (4,), size)
    assert len(read) == 1


def test_an_empty_tensor_may_be_named_after_the_one_that_it_lies_before(tmp_path: Path) -> None:
    header = {"w": entry("F32", [2], 0, 8), "none": entry("F32", [0, 3], 0, 0)}
    (tmp_path / "x.safetensors").write_bytes(packed(header, 8))
    with safe_open(tmp_path / "x.safetensors", "numpy") as file:
        assert set(file.keys()) == {"w", "none"}
    found = judge_header(BytesIO(packed(header, 8)), "x")
    assert [tensor.name for tensor in found] == ["none", "w"]


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": entry("F8_E8M0", [4], 0, 4)}, 4),
        ({"a": entry("F32", [1] * 9, 0, 4)}, 4),
        ({str(number): entry("F32", [0], 0, 0) for number in range(STORED.tensors + 1)}, 0),
        ({"__metadata__": {"key": "x" * STORED.metadata}}, 0),
    ],
)
def test_a_base_may_be_larger_than_what_the_bank_stores(header: dict[str, Any], size: int) -> None:
    judge_header(BytesIO(packed(header, size)), "x", BASE)
    with pytest.raises(DataError, match=r"^x: "):
        judge_header(BytesIO(packed(header, size)), "x")
