"""Mapped files, against safetensors' own reader."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorabank.core.errors import DataError
from lorabank.exchange.mapped import MappedTensors

TENSORS = {
    "a": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "b": torch.randn(4, 2, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "c": torch.randn(7, generator=torch.Generator().manual_seed(2)).half(),
    "d": torch.tensor(2.5, dtype=torch.float64),
    "e": torch.arange(6).reshape(1, 2, 3),
    "f": torch.tensor([True, False, True]),
    "g": torch.zeros(0, 4),
}


@pytest.fixture
def file(tmp_path) -> Path:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


def test_every_tensor_is_what_safetensors_reads(file) -> None:
    mapped, found = MappedTensors(file), load_file(file)
    tensors = mapped.map()
    assert tensors.keys() == found.keys()
    for name, tensor in found.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == mapped.entries[name].shape == tensor.shape
        assert torch.equal(tensors[name], tensor)


def test_a_header_of_odd_length_is_read_as_safetensors_reads_it(tmp_path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (5 - len(header) % 4)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + torch.tensor([1.5, -2.0]).numpy().tobytes())
    assert len(header) % 4
    assert torch.equal(MappedTensors(path).map()["a"], load_file(path)["a"])


def test_the_file_is_neither_changed_nor_kept_open(file) -> None:
    before, opened = file.read_bytes(), len(os.listdir("/proc/self/fd"))
    tensors = MappedTensors(file).map()
    assert len(os.listdir("/proc/self/fd")) == opened
    tensors["a"].zero_()
    assert file.read_bytes() == before


def test_two_files_with_one_header_are_two_files(file, tmp_path) -> None:
    save_file(TENSORS | {"a": TENSORS["a"] + 1}, tmp_path / "y.safetensors", metadata={"format": "pt"})
    assert torch.equal(MappedTensors(file).map()["a"], TENSORS["a"])
    assert torch.equal(MappedTensors(tmp_path / "y.safetensors").map()["a"], TENSORS["a"] + 1)


@pytest.mark.parametrize("size", [0, 7, 8, 60, -1])
def test_a_file_that_is_cut_off_is_named(file, size) -> None:
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DataError, match=r"/x\.safetensors: it (is truncated|has \d+ bytes)"):
        MappedTensors(file)


def test_a_length_that_nothing_holds_is_refused(file) -> None:
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
    with pytest.raises(DataError, match=r"/x\.safetensors: it is truncated"):
        MappedTensors(file)


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
        {"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4.0]}},
        {"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": 1},
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path, header) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(DataError, match=r"/x\.safetensors: (its header is|tensor 'a' )"):
        MappedTensors(tmp_path / "x.safetensors")
