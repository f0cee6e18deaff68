from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from lorabank.models.bases import kept_facts
from lorabank.models.bases.fingerprint import WEIGHTS, weight_facts
from lorabank.models.bases.kept_facts import known_weight_facts, read_weight_facts


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tensors whose file counts as old enough to be known by its stamp."""
    monkeypatch.setattr(kept_facts, "SETTLED", 0)
    monkeypatch.setattr(kept_facts, "_FACTS", {})
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    (tmp_path / "base").mkdir()
    save_file({"a": torch.zeros(4), "b": torch.ones(2, 3)}, tmp_path / "base" / WEIGHTS)
    return tmp_path / "base"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose weights were read."""
    found: list[Path] = []

    def read(folder: Path) -> object:
        found.append(folder)
        return weight_facts(folder)

    monkeypatch.setattr(kept_facts, "weight_facts", read)
    return found


def test_unchanged_weights_are_read_once(folder: Path, reads: list[Path]) -> None:
    expected = weight_facts(folder)
    assert [known_weight_facts(folder) for _ in range(3)] == [expected] * 3
    assert reads == [folder]


def _next_tick(folder: Path) -> None:
    """Until what is written from here on has another time than what was written before."""
    probe, before = folder / "probe", os.stat(folder / WEIGHTS).st_ctime_ns
    probe.touch()
    while os.stat(probe).st_ctime_ns <= before:
        probe.touch()


def _one_value(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["a"][0] = 5.0
    data = folder / "new"
    save_file(tensors, data)
    (folder / WEIGHTS).write_bytes(data.read_bytes())
    data.unlink()


def _another_file(folder: Path) -> None:
    """Of the same size and the same time of change, under the same name."""
    before = os.stat(folder / WEIGHTS)
    tensors = load_file(folder / WEIGHTS)
    tensors["a"][0] = 5.0
    save_file(tensors, folder / "new")
    os.utime(folder / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(folder / "new", folder / WEIGHTS)


def _in_place_with_its_old_time(folder: Path) -> None:
    before = os.stat(folder / WEIGHTS)
    _one_value(folder)
    os.utime(folder / WEIGHTS, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [_one_value, _another_file, _in_place_with_its_old_time])
def test_changed_weights_are_read_again(folder: Path, reads: list[Path], change) -> None:
    before = known_weight_facts(folder)
    _next_tick(folder)
    change(folder)
    after = known_weight_facts(folder)
    assert len(reads) == 2
    assert after == weight_facts(folder)
    assert after.fingerprint != before.fingerprint


def test_a_copy_elsewhere_is_read_by_itself(folder: Path, reads: list[Path], tmp_path: Path) -> None:
    known_weight_facts(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert known_weight_facts(tmp_path / "copy") == known_weight_facts(folder)
    assert reads == [folder, tmp_path / "copy"]


def test_a_file_written_a_moment_ago_is_not_known_by_its_time(
    folder: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second write within the same tick of the clock would leave the same stamp."""
    monkeypatch.setattr(kept_facts, "SETTLED", 3600 * 10**9)
    assert known_weight_facts(folder) == known_weight_facts(folder)
    assert reads == [folder, folder]


def _another_process() -> None:
    kept_facts._FACTS.clear()


def _kept(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "home" / "lorabank" / "fingerprints").iterdir()
    return file


def test_another_process_need_not_read_them(folder: Path, reads: list[Path], tmp_path: Path) -> None:
    expected = known_weight_facts(folder)
    _another_process()
    assert known_weight_facts(folder) == expected
    assert reads == [folder]
    assert _kept(tmp_path).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("change", [_one_value, _another_file, _in_place_with_its_old_time])
def test_another_process_reads_changed_weights(folder: Path, reads: list[Path], change, tmp_path: Path) -> None:
    known_weight_facts(folder)
    _next_tick(folder)
    change(folder)
    _another_process()
    assert known_weight_facts(folder) == weight_facts(folder)
    assert len(reads) == 2
    _another_process()
    assert known_weight_facts(folder) == weight_facts(folder)
    assert len(reads) == 2
    assert _kept(tmp_path).is_file()  # in the place of what was kept before


@pytest.mark.parametrize("broken", ["", "[]", "{}", '{"files": 1}', "[" * 100_000, '{"fingerprint": 5}'])
def test_what_is_kept_and_broken_is_not_taken(folder: Path, reads: list[Path], tmp_path: Path, broken: str) -> None:
    expected = known_weight_facts(folder)
    _kept(tmp_path).write_text(broken)
    _another_process()
    assert known_weight_facts(folder) == expected
    assert len(reads) == 2


@pytest.mark.parametrize("wrong", [{"fingerprint": "\x1b" * 64}, {"parameters": -1}, {"dtype": "x"}, {"dtype": []}])
def test_so_is_what_says_nothing_of_weights(
    folder: Path, reads: list[Path], tmp_path: Path, wrong: dict[str, object]
) -> None:
    expected = known_weight_facts(folder)
    _kept(tmp_path).write_text(json.dumps(json.loads(_kept(tmp_path).read_text()) | wrong))
    _another_process()
    assert known_weight_facts(folder) == expected


def test_what_is_no_file_or_too_long_is_not_read(folder: Path, reads: list[Path], tmp_path: Path) -> None:
    expected = known_weight_facts(folder)
    kept = _kept(tmp_path)
    kept.unlink()
    os.mkfifo(kept, 0o600)
    thread = threading.Thread(target=lambda: (_another_process(), known_weight_facts(folder)), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert kept.is_file()  # in the place of the pipe
    os.truncate(kept, kept_facts.LONGEST + 1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kept_facts.json, "load", lambda _: pytest.fail("it is read"))
        _another_process()
        assert known_weight_facts(folder) == expected


def test_what_another_user_could_write_is_not_taken(folder: Path, reads: list[Path], tmp_path: Path) -> None:
    expected = known_weight_facts(folder)
    forged = json.loads(_kept(tmp_path).read_text()) | {"fingerprint": "0" * 64}
    _kept(tmp_path).write_text(json.dumps(forged))
    _kept(tmp_path).chmod(0o622)
    _another_process()
    assert known_weight_facts(folder) == expected


def test_a_cache_that_cannot_be_written_costs_time_alone(folder: Path, reads: list[Path], tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file in the place of the folder")
    expected = known_weight_facts(folder)
    assert known_weight_facts(folder) == expected
    _another_process()
    assert known_weight_facts(folder) == expected
    assert reads == [folder, folder]


def test_reading_them_anew_renews_what_is_kept(folder: Path, reads: list[Path], tmp_path: Path) -> None:
    """For the one change that a stamp does not show: here what is kept was wrong from the beginning."""
    expected = known_weight_facts(folder)
    kept = json.loads(_kept(tmp_path).read_text())
    _kept(tmp_path).write_text(json.dumps(kept | {"fingerprint": "0" * 64}))
    _another_process()
    assert known_weight_facts(folder).fingerprint == "0" * 64
    assert read_weight_facts(folder) == expected == known_weight_facts(folder)
    _another_process()
    assert known_weight_facts(folder) == expected
