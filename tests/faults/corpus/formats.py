"""A: the format of the weights file."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

from tests.faults.corpus.case import QUERY, WEIGHTS, Case, header, packed, weights

A, B = f"{QUERY}.lora_A.weight", f"{QUERY}.lora_B.weight"
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def replaced(content: bytes) -> Any:
    return weights(lambda _: content)


def large_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(packed(b"{", length=100 * 2**20 + 1))
    os.truncate(folder / WEIGHTS, 8 + 100 * 2**20 + 1)


def with_zip(data: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", b"cos\nsystem\n.")
    return data + archive.getvalue()


def key_twice(data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + size].rstrip()
    entry = json.dumps({A: json.loads(text)[A]}).encode()[1:-1]
    return packed(text[:-1] + b"," + entry + b"}", data[8 + size :])


def shift(entries: dict[str, Any], by: int) -> None:
    """Move the last tensor, so that a hole or an overlap lies before it."""
    last = max((name for name in entries if name != "__metadata__"), key=lambda n: entries[n]["data_offsets"][1])
    entries[last]["data_offsets"] = [offset + by for offset in entries[last]["data_offsets"]]


def shape(value: list[int]) -> Any:
    return header(lambda entries: entries[A].update(shape=value))


def many_tensors(_: bytes) -> bytes:
    entry = b'"%d": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}'
    return packed(b"{" + b", ".join(entry % n for n in range(500_000)) + b"}")


CASES = (
    Case("A01 empty", 6, replaced(b"")),
    Case("A02 seven bytes", 6, replaced(b"1234567")),
    Case("A03 header of length 0", 6, replaced(packed(b"{}", length=0))),
    Case("A04 header of 2^63 bytes", 6, replaced(packed(b"{}", length=2**63))),
    Case("A05 header of 2^64 - 1 bytes", 6, replaced(packed(b"{}", length=2**64 - 1))),
    Case("A06 header of 100 MB and 1 byte", 6, large_header),
    Case("A07 cut off in the header", 6, weights(lambda data: data[:100])),
    Case("A08 cut off in the tensors", 6, weights(lambda data: data[: len(data) // 2])),
    Case("A09 cut off by one byte", 6, weights(lambda data: data[:-1])),
    Case("A10 trailing bytes", 6, weights(lambda data: data + b"\0" * 5)),
    Case("A11 zip archive behind the tensors", 6, weights(with_zip)),
    Case("A12 header no JSON", 6, replaced(packed(b"{nope}"))),
    Case("A13 header a list", 6, replaced(packed(b"[]"))),
    Case("A14 header no UTF-8", 6, replaced(packed(b'{"\xff": 1}'))),
    Case("A15 header nested 200,000 deep", 6, replaced(packed(b"[" * 200_000))),
    Case("A16 key twice", 6, weights(key_twice)),
    Case("A17 hole", 6, header(lambda entries: shift(entries, 4))),
    Case("A18 overlap", 6, header(lambda entries: shift(entries, -4))),
    Case("A19 negative shape", 6, shape([-2, -32])),
    Case("A20 overflowing shape", 6, shape([2**32, 2**32])),
    Case("A21 size unlike the shape", 6, shape([2, 33])),
    Case("A22 unknown dtype", 6, header(lambda entries: entries[A].update(dtype="F31"))),
    Case("A23 metadata no text", 6, header(lambda entries: entries.update(__metadata__={"a": [1]}))),
    Case("A24 500,000 tensors", 6, weights(many_tensors)),
    Case("A25 pickle under another name", 6, replaced(pickle.dumps({"lora_A": [1.0]}))),
    Case("A26 shape of 60,000 dimensions", 6, shape([2**47] * 60_000)),
    Case("A27 tensor name of 500 kB", 6, replaced(packed(json.dumps({"a\x1b" * 125_000: ONE}).encode(), b"\0" * 3))),
    Case("A28 number of 5,000 digits", 6, replaced(packed(b'{"a": ' + b"9" * 5000 + b"}"))),
)
