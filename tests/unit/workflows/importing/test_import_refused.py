"""Imports that are refused: whatever is wrong is told and changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorabank.bank.bank import Bank
from lorabank.core.config import InitConfig
from lorabank.core.errors import ConfigError, DataError, ExistsError, IncompatibleError, LorabankError, NotFoundError
from lorabank.workflows.carrying.adapter_source import read_source

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def edit(source: Path, **fields: Any) -> None:
    config = json.loads((source / CONFIG).read_text(encoding="utf-8")) | fields
    (source / CONFIG).write_text(json.dumps(config))


def edit_tensors(source: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(source / WEIGHTS)
    change(tensors)
    save_file(tensors, source / WEIGHTS)


def remove(name: str) -> Callable[[Path], None]:
    return lambda source: (source / name).unlink()


def link(name: str) -> Callable[[Path], None]:
    def make(source: Path) -> None:
        (source / name).rename(source / "real")
        (source / name).symlink_to("real")

    return make


def pipe(name: str) -> Callable[[Path], None]:
    def make(source: Path) -> None:
        (source / name).unlink()
        os.mkfifo(source / name)

    return make


def folder(name: str) -> Callable[[Path], None]:
    def make(source: Path) -> None:
        (source / name).unlink()
        (source / name).mkdir()

    return make


def only_a_pickle(source: Path) -> None:
    (source / WEIGHTS).unlink()
    (source / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")


def large_config(source: Path) -> None:
    with (source / CONFIG).open("ab") as file:
        file.write(b" " * (256 * 1024))


def sparse_weights(source: Path) -> None:
    os.truncate(source / WEIGHTS, 2 * 1024**3 + 1)


def cut_off(source: Path) -> None:
    os.truncate(source / WEIGHTS, 1000)


def trailing(source: Path) -> None:
    with (source / WEIGHTS).open("ab") as file:
        file.write(b"PK")


def duplicate_key(source: Path) -> None:
    data = (source / WEIGHTS).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].decode().rstrip()
    key = next(key for key in json.loads(header) if key != "__metadata__")
    entry = json.dumps({key: json.loads(header)[key]})[1:-1]
    header = header[:-1] + "," + entry + "}"
    (source / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header.encode() + data[8 + size :])


def tensor(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    return lambda source: edit_tensors(source, change)


def first(tensors: dict[str, torch.Tensor], ending: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(ending))


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors, "lora_A.weight")][0, 0] = float("nan")


def infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors, "classifier.bias")][0] = float("inf")


def zero(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        if name.endswith("lora_B.weight"):
            tensors[name].zero_()


def base_weights(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.bert.encoder.layer.0.attention.self.query.weight"] = torch.eye(32)


def half(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "layer.1." in name]:
        del tensors[name]


def headless(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "classifier" in name]:
        del tensors[name]


def more_layers(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "layer.1." in name]:
        tensors[name.replace("layer.1.", "layer.7.")] = tensors[name].clone()


@pytest.mark.parametrize(
    ("damage", "error", "reason"),
    [
        (remove(CONFIG), DataError, "adapter_config.json is missing"),
        (remove(WEIGHTS), DataError, "adapter_model.safetensors is missing"),
        (link(CONFIG), DataError, "is a link"),
        (link(WEIGHTS), DataError, "is a link"),
        (pipe(CONFIG), DataError, "not a regular file"),
        (pipe(WEIGHTS), DataError, "not a regular file"),
        (folder(CONFIG), DataError, "not a regular file"),
        (folder(WEIGHTS), DataError, "not a regular file"),
        (only_a_pickle, DataError, "adapter_model.bin is a pickle"),
        (large_config, DataError, "larger than 262144 bytes"),
        (sparse_weights, DataError, "larger than 2147483648 bytes"),
        (cut_off, DataError, "adapter_model.safetensors"),
        (trailing, DataError, "adapter_model.safetensors"),
        (duplicate_key, DataError, "a key appears twice"),
        (tensor(nan), DataError, "lora_A.weight' holds values that are not finite"),
        (tensor(infinite), DataError, "classifier.bias' holds values that are not finite"),
        (tensor(zero), DataError, "every delta weight is zero"),
        (tensor(base_weights), DataError, "self.query.weight' is neither a LoRA factor"),
        (tensor(half), DataError, "is missing"),
        (tensor(headless), DataError, r"head tensor 'classifier.bias' is missing"),
        (tensor(more_layers), IncompatibleError, "layer.7.attention.self"),
        (lambda source: edit(source, r=1_000_000), DataError, "'r'"),
        (lambda source: edit(source, target_modules="(a+)+$"), DataError, "is not part of what"),
        (lambda source: edit(source, use_dora=True), DataError, "use_dora"),
        (lambda source: edit(source, task_type="CAUSAL_LM"), IncompatibleError, "CAUSAL_LM"),
        (shutil.rmtree, NotFoundError, "there is no folder"),
    ],
)
@pytest.mark.parametrize("fresh", [False, True], ids=["bank", "no-bank"])
def test_a_bad_folder_changes_nothing(
    bank, source, bring_in, bert_bank, tmp_path, tree, damage, error, reason, fresh
) -> None:
    damage(source)
    path = tmp_path / "none" if fresh else bank
    before = tree(bank)
    with pytest.raises(error, match=reason) as refused:
        bring_in(source, path=path, init=InitConfig(base=str(bert_bank.parent / "base")))
    assert "\n" not in refused.value.message
    assert refused.value.unchanged
    assert tree(bank) == before
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"task": "second"}, ExistsError, "has a task 'second' already"),
        ({"task": "mixed"}, ExistsError, "has a composition 'mixed' already"),
        ({"task": "../x"}, ConfigError, "cannot be a name"),
        ({"labels": ("one", "two")}, DataError, "the data has the label 'three'"),
        ({"labels": ("one", "two", "three", "two")}, ConfigError, "appears twice"),
        ({"labels": ("one", "two", "three", "")}, ConfigError, "empty"),
        ({"labels": ("one", "two", "three", "four")}, IncompatibleError, "4 labels need"),
        ({"init": InitConfig(base="someone/else")}, IncompatibleError, "not 'someone/else'"),
    ],
)
def test_a_request_that_cannot_be_met_changes_nothing(
    bank, source, bring_in, compose, tree, options, error, reason
) -> None:
    compose("manual", name="mixed")
    before = tree(bank)
    with pytest.raises(error, match=reason):
        bring_in(source, **options)
    assert tree(bank) == before


def test_a_name_that_cannot_be_used_makes_no_bank_and_loads_no_model(
    bank, source, bring_in, tmp_path, bert_bank, monkeypatch
) -> None:
    from lorabank.models.bases import open_base

    monkeypatch.setattr(open_base, "load_base", None)
    with pytest.raises(ConfigError, match="cannot be a name"):
        bring_in(source, "../x", path=tmp_path / "none", init=InitConfig(base=str(bert_bank.parent / "base")))
    assert not (tmp_path / "none").exists()
    with pytest.raises(ExistsError, match="'second' already"):
        bring_in(source, "second")


def test_labels_that_do_not_fit_the_head_say_what_to_type(source, bring_in, rows) -> None:
    with pytest.raises(IncompatibleError, match="2 labels need") as refused:
        bring_in(source, data=rows("two.jsonl", ("no", "yes")))
    assert "--labels A,B,..." in str(refused.value.hint)


def test_no_mutation_of_the_weights_gets_past_with_another_error(source) -> None:
    """Bytes flipped, cut or doubled at random: refused by name, or read as what they are."""
    import random

    chance = random.Random(0)
    good = (source / WEIGHTS).read_bytes()
    refused = 0
    for _ in range(400):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            start = chance.randrange(min(len(data), 4000))
            kind = chance.randrange(3)
            if kind == 0:
                data[start] ^= 1 << chance.randrange(8)
            elif kind == 1:
                del data[start : start + chance.randint(1, 64)]
            else:
                data[start:start] = data[start : start + chance.randint(1, 64)]
        (source / WEIGHTS).write_bytes(data)
        try:
            read_source(source)
        except LorabankError as error:
            refused += error.exit_code == DataError.exit_code
    assert refused > 200


def test_an_interrupted_import_leaves_the_name_free(bank, source, bring_in, monkeypatch) -> None:
    from lorabank.workflows.carrying import import_adapter as import_

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(import_, "commit_and_score", stop)
        with pytest.raises(KeyboardInterrupt):
            bring_in(source)
    assert Bank.open(bank).operations() == []
    assert bring_in(source).task.position == 3


@pytest.mark.parametrize(
    "header", [b"", bytes(8) + b"{}", (10**12).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]"]
)
def test_weights_are_judged_by_their_header_before_they_are_read(source: Path, header: bytes) -> None:
    """A sparse file takes no place on the disk, and none in memory either."""
    with (source / WEIGHTS).open("wb") as file:
        file.write(header)
        file.truncate(2 * 1024**3 - 1)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=WEIGHTS):
            read_source(source)
        assert tracemalloc.get_traced_memory()[1] < 20 * 1024**2
    finally:
        tracemalloc.stop()
