"""A read that fails: in passing it condemns no file, for good it is damage; limits of the process are neither."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.bank.objects import store
from lorabank.core.errors import DamagedError, StorageError

Fail = Callable[[str, int, int], None]


@pytest.fixture
def filled(bank: Bank, kit: Any) -> Bank:
    kit.add_task(bank, "a", weight=1.0)
    return bank


@pytest.fixture
def copy(filled: Bank, folder: Path) -> Path:
    api.backup(filled.path, folder / "copy")
    return folder / "copy"


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """``fail(text, number, times)``: opening paths that hold the text fails with an error, so many times."""

    def install(text: str, number: int, times: int) -> None:
        sound, left = store.open_plain, [times]

        def open_plain(path: Path) -> Any:
            if text in str(path) and left[0]:
                left[0] -= 1
                raise OSError(number, os.strerror(number), str(path))
            return sound(path)

        monkeypatch.setattr(store, "open_plain", open_plain)

    return install


def weights(bank: Path) -> Path:
    digest = Bank.open(bank).snapshot().adapter_of("a").digest
    return bank / "adapters" / digest / "adapter_model.safetensors"


def test_a_repair_takes_no_offence_at_an_error_in_passing(filled, fail):
    fail("adapter_model", errno.EIO, 1)
    assert api.repair(filled.path) == ((), (), (), (), ())
    assert filled.verify(full=True) == []


def test_what_cannot_be_read_at_all_is_put_aside(filled, copy, fail):
    fail(f"{filled.path}/adapters", errno.EIO, 2)
    repaired = api.repair(filled.path, source=copy)
    assert (len(repaired.quarantined), len(repaired.fetched), repaired.set_aside) == (1, 1, ())
    assert filled.verify(full=True) == []


def test_a_good_copy_is_asked_twice(filled, copy, fail):
    weights(filled.path).unlink()
    fail(f"{copy}/adapters", errno.EIO, 1)
    assert api.restore(filled.path, copy).mended != ()
    assert filled.verify(full=True) == []


@pytest.mark.parametrize("times", [2, 1000])
def test_a_restore_never_goes_past_what_it_could_not_read(filled, copy, fail, times):
    """Not even when the next look, for the message, finds nothing wrong."""
    shutil.rmtree(weights(filled.path).parent)
    fail(f"{copy}/adapters/{weights(copy).parent.name}/adapter_model", errno.EIO, times)
    with pytest.raises(DamagedError, match=r"of task a: adapter_model\.safetensors c"):
        api.restore(filled.path, copy)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_the_limits_of_the_process_say_nothing_about_a_file(filled, copy, fail, number):
    before = {path: path.read_bytes() for path in filled.path.rglob("*") if path.is_file() and path.suffix != ".db"}
    fail("adapter_model", number, 1000)
    actions = (
        lambda: api.repair(filled.path),
        lambda: api.backup(filled.path, copy),
        lambda: api.restore(filled.path, copy),
    )
    for action in actions:
        with pytest.raises(StorageError, match=os.strerror(number)):
            action()
    with pytest.raises(OSError, match=os.strerror(number)):  # the command line says it as a StorageError
        filled.verify(full=True)
    assert {path: path.read_bytes() for path in before} == before
    assert not (filled.path / "quarantine").exists()
