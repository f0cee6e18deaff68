"""Checkpoints that are whole or not there."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lorabank.training import checkpoints
from lorabank.training.checkpoints import (
    newest_checkpoint,
    random_state,
    read_facts,
    read_tensors,
    restore_random_state,
    save_checkpoint,
)

TENSORS = {"trainable": {"a.b": torch.arange(6.0).view(2, 3), "c": torch.tensor(3)}}


def save(work: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(work, step, TENSORS, {"state": {"step": step, "rate": 0.1}})


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 7)
    folder = newest_checkpoint(tmp_path)
    assert folder == tmp_path / "checkpoint-7"
    assert read_facts(folder, "state") == {"step": 7, "rate": 0.1}
    for name, tensor in read_tensors(folder, "trainable").items():
        assert torch.equal(tensor, TENSORS["trainable"][name])


def test_the_newest_two_are_kept_by_number_not_by_name(tmp_path: Path) -> None:
    save(tmp_path, 8, 9, 10, 11)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11"]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-11"


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 3)
    save_checkpoint(tmp_path, 3, TENSORS, {"state": "new"})
    assert read_facts(tmp_path / "checkpoint-3", "state") == "new"


@pytest.mark.parametrize("file", ["trainable.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, file: str, damage: str) -> None:
    save(tmp_path, 1, 2)
    path = tmp_path / "checkpoint-2" / file
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if damage == "cut" else bytes([content[0] ^ 255]) + content[1:])
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


def test_nothing_whole_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "not there") is None
    save(tmp_path, 1)
    (tmp_path / "checkpoint-1" / "manifest.json").unlink()
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_checkpoint(tmp_path) is None


def test_an_interrupted_write_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def stop(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stop)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    save(tmp_path, 2)  # what was left does not stand in the way
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / ".checkpoint-2").exists()


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash of the machine loses what was not synced; the order of the syncs is what counts."""
    synced: list[str] = []
    original = checkpoints.os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        original(descriptor)

    monkeypatch.setattr(checkpoints.os, "fsync", fsync)
    save(tmp_path, 5)
    assert synced == ["trainable.safetensors", "state.json", "manifest.json", ".checkpoint-5", tmp_path.name]


def test_every_generator_goes_on_where_it_was() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    random.gauss(0, 1)
    np.random.normal()  # leaves a second number waiting
    tensors, facts = random_state()
    facts = json.loads(json.dumps(facts))

    def draw() -> list[float]:
        return [random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), float(torch.rand(()))]

    expected = draw()
    draw()
    restore_random_state(tensors, facts)
    assert draw() == expected


def test_a_folder_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2").write_text("a file")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


@pytest.mark.parametrize("manifest", ["[]", "7", '{"a": 1}', '{"a\\u0000": "b"}', "[" * 100_000])
def test_a_manifest_of_another_kind_is_no_checkpoint(tmp_path: Path, manifest: str) -> None:
    save(tmp_path, 7)
    odd = ["checkpoint-\u00b2"] if sys.getfilesystemencoding() == "utf-8" else []
    for name in ("checkpoint-9", *odd, "checkpoint-" + "9" * 200):
        (tmp_path / name).mkdir()
        (tmp_path / name / checkpoints._MANIFEST).write_text(manifest)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-7"
