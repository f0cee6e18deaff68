from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorabank.bank.objects.safetensors import check_tensors, looks_like_safetensors
from lorabank.core.errors import DataError
from lorabank.core.files.safetensors_header import TensorInfo


def packed(header: object, data: bytes = b"", *, text: bytes | None = None, length: int | None = None) -> bytes:
    text = json.dumps(header).encode() if text is None else text
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


REFUSED = {
    "empty": b"",
    "seven bytes": b"1234567",
    "header of length 0": packed({}, length=0),
    "header of 2**63": packed({}, length=2**63),
    "header of 2**64-1": packed({}, length=2**64 - 1),
    "header over the limit": packed({}, text=b" " * 1_000_001),
    "header cut off": packed({"a": entry()})[:-5],
    "tensor cut off": packed({"a": entry()}, b"\0" * 3),
    "trailing bytes": packed({"a": entry()}, b"\0" * 5),
    "not JSON": packed(None, text=b"{nope}"),
    "not UTF-8": packed(None, text=b'{"\xff": 1}'),
    "a list": packed([]),
    "nested": packed(None, text=b"[" * 200_000),
    "a key twice": packed(None, b"\0" * 4, text=b'{"a":%(e)s,"a":%(e)s}' % {b"e": json.dumps(entry()).encode()}),
    "hole": packed({"a": entry(offsets=(4, 8))}, b"\0" * 8),
    "overlap": packed({"a": entry(), "b": entry()}, b"\0" * 4),
    "negative shape": packed({"a": entry(shape=(-1,))}, b"\0" * 4),
    "overflowing shape": packed({"a": entry(shape=(2**32, 2**32))}, b"\0" * 4),
    "many dimensions": packed({"a": entry(shape=(2**47,) * 60_000)}, b"\0" * 4),
    "long name": packed({"a" * 500_000: entry("F31")}, b"\0" * 4),
    "shape of true": packed({"a": entry(shape=(True,))}, b"\0" * 4),
    "shape of floats": packed({"a": entry(shape=(1.0,))}, b"\0" * 4),
    "size unlike the shape": packed({"a": entry(shape=(2,))}, b"\0" * 4),
    "backward offsets": packed({"a": entry(shape=(0,), offsets=(4, 0))}, b"\0" * 4),
    "three offsets": packed({"a": entry(offsets=(0, 4, 4))}, b"\0" * 4),
    "unknown dtype": packed({"a": entry("F31")}, b"\0" * 4),
    "dtype no text": packed({"a": entry(["F32"])}, b"\0" * 4),
    "unknown field": packed({"a": {**entry(), "x": 1}}, b"\0" * 4),
    "entry no object": packed({"a": 1}, b"\0" * 4),
    "metadata no text": packed({"__metadata__": {"a": 1}}),
    "too many tensors": packed({str(n): entry(shape=(0,), offsets=(0, 0)) for n in range(4097)}),
    "pickle": b"\x80\x04\x95" + b"\0" * 40,
    "zip": b"PK\x03\x04" + b"\0" * 40,
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED.keys())
def test_malformed_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"^adapter_model\.safetensors: ") as caught:
        check_tensors(path)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300


def test_the_header_is_read_in_the_order_of_the_bytes(tmp_path):
    path = tmp_path / "x.safetensors"
    header = {
        "b": entry("BF16", (2, 3), (4, 16)),
        "a": entry(),
        "__metadata__": {"format": "pt"},
        "c": entry("I64", (0,), (16, 16)),
    }
    path.write_bytes(packed(header, b"\0" * 16))
    start = 8 + len(json.dumps(header))
    assert check_tensors(path) == (
        TensorInfo("a", "F32", (1,), start, start + 4),
        TensorInfo("b", "BF16", (2, 3), start + 4, start + 16),
        TensorInfo("c", "I64", (0,), start + 16, start + 16),
    )
    assert looks_like_safetensors(path.read_bytes())
    assert not looks_like_safetensors(b"PAR1" + b"\0" * 100)


def test_files_of_the_safetensors_library_are_read(tmp_path):
    numpy_files = pytest.importorskip("safetensors.numpy")
    tensors = {"w": np.ones((3, 4), np.float32), "scalar": np.array(2.0), "half": np.ones(5, np.float16)}
    path = tmp_path / "x.safetensors"
    numpy_files.save_file(tensors, path, metadata={"format": "pt"})
    assert {tensor.name: tensor.shape for tensor in check_tensors(path)} == {"w": (3, 4), "scalar": (), "half": (5,)}


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        ("F64", [1.0, -1e308], [float("nan"), float("inf"), float("-inf")]),
        ("F32", [1.0, 3e38, 1e-40], [float("nan"), float("inf"), float("-inf")]),
        # By bits, from the formats' definitions: largest finite and a subnormal; then +inf, -inf and NaNs.
        ("F16", [0x7BFF, 0x0001], [0x7C00, 0xFC00, 0x7E00, 0x7C01]),
        ("BF16", [0x7F7F, 0x0001], [0x7F80, 0xFF80, 0x7FC0, 0x7F81]),
        ("F8_E5M2", [0x7B, 0x01], [0x7C, 0xFC, 0x7F]),
        ("F8_E4M3", [0x7E, 0x78], [0x7F, 0xFF]),
    ],
)
def test_values_that_are_not_finite_are_found(tmp_path, dtype, good, bad):
    code = {"F64": "d", "F32": "f", "F16": "H", "BF16": "H"}.get(dtype, "B")
    path = tmp_path / "x.safetensors"

    def write(values):
        data = struct.pack(f"<{len(values)}{code}", *values)
        path.write_bytes(packed({"layer.weight": entry(dtype, (len(values),), (0, len(data)))}, data))

    write(good * 10)
    check_tensors(path)
    for value in bad:
        write([*good, value])
        with pytest.raises(DataError, match=r"'layer\.weight' holds values that are not finite"):
            check_tensors(path)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_files_raise_nothing_but_our_error(tmp_path: Path, data: st.DataObject):
    content = bytearray(packed({"a": entry(), "b": entry("F16", (2,), (4, 8))}, b"\0" * 8))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    with contextlib.suppress(DataError):
        check_tensors(path)
