"""What every place for a bank's content must keep: see `lorabank.bank.objects.base.Objects`."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lorabank.bank.objects.base import Objects, Staging, StoredFile
from lorabank.core.errors import ConfigError, DamagedError, DataError
from lorabank.testing.cuts import Cut, counted, refused

_CONFIG = json.dumps({"peft_type": "LORA", "r": 2}).encode()
_NOWHERE = "0" * 64


class ObjectsContract(ABC):
    """The promises of `lorabank.bank.objects.base.Objects`.

    Attributes:
        calls: Names of functions of ``os`` by which the implementation writes: a change is cut off before each call.
            An implementation that writes otherwise overrides `cut_off`.
    """

    calls: tuple[str, ...] = ()

    @abstractmethod
    def make(self, folder: Path) -> Objects:
        """The objects that are kept in a folder; two calls with one folder are two views of the same."""

    @abstractmethod
    def spoil(self, folder: Path, digest: str) -> None:
        """Change a byte of a blob, or of one file of an adapter, as a failing disk would."""

    @contextmanager
    def cut_off(self, step: int) -> Iterator[None]:
        """Raise `Cut` before the step-th write inside the block, counted from 1."""
        left = [step]
        sound = {name: getattr(os, name) for name in self.calls}
        try:
            for name, call in sound.items():
                setattr(os, name, counted(call, left))
            yield
        finally:
            for name, call in sound.items():
                setattr(os, name, call)

    # ------------------------------------------------------------------------------------------------ put and get

    def test_what_is_placed_is_there_for_everybody(self, tmp_path: Path) -> None:
        """A blob comes back byte for byte, an adapter as a folder; both are listed with their sizes."""
        objects, files = self.make(tmp_path), adapter(1.0)
        stage = objects.stage(_change(1))
        blob, folder = stage.add_blob(b"PAR1 rows"), stage.add_adapter(files)
        stage.place()
        stage.discard()
        for view in (objects, self.make(tmp_path)):
            assert view.get(blob) == b"PAR1 rows"
            assert {path.name: path.read_bytes() for path in view.local(folder).iterdir()} == files
            assert view.holds("blob", blob)
            assert view.holds("adapter", folder)
            found = {(kept.kind, kept.digest, kept.bytes) for kept in view.list()}
            assert found == {("blob", blob, 9), ("adapter", folder, sum(map(len, files.values())))}
            assert whole(view, stage)

    def test_digests_are_of_the_content_alone(self, tmp_path: Path) -> None:
        """A blob's is its SHA-256; an adapter's that of its files' names, hashes and sizes as JSON, by name."""
        files, stage = adapter(2.0), self.make(tmp_path).stage(_change(1))
        listed = [[name, hashlib.sha256(data).hexdigest(), len(data)] for name, data in sorted(files.items())]
        text = json.dumps(listed, separators=(",", ":"))
        assert stage.add_blob(b"rows") == hashlib.sha256(b"rows").hexdigest()
        assert stage.add_adapter(dict(reversed(files.items()))) == hashlib.sha256(text.encode()).hexdigest()

    def test_nothing_is_seen_before_it_is_placed(self, tmp_path: Path) -> None:
        """And nothing at all when the change is dropped, or its process is killed."""
        objects = self.make(tmp_path)
        for number in (1, 2):
            stage = objects.stage(_change(number))
            assert stage.is_empty
            blob, folder = stage.add_blob(b"rows"), stage.add_adapter(adapter(1.0))
            assert not stage.is_empty
            assert not objects.holds("blob", blob)
            assert not objects.holds("adapter", folder)
            assert list(objects.list()) == []
            if number == 1:
                stage.discard()
        assert list(self.make(tmp_path).list()) == []

    def test_one_content_is_one_object(self, tmp_path: Path) -> None:
        """Placing it again keeps it, and renews its time: its new owner is as young as any."""
        objects = self.make(tmp_path)
        first = put(objects, 1, b"rows", 1.0)
        before = {kept.digest: kept for kept in objects.list()}
        second = put(objects, 2, b"rows", 1.0)
        after = {kept.digest: kept for kept in objects.list()}
        assert _digests(first) == _digests(second) == before.keys()
        assert before.keys() == after.keys()
        assert all(after[digest].modified >= before[digest].modified for digest in before)

    def test_what_is_not_there_is_said(self, tmp_path: Path) -> None:
        """Reading raises, judging gives a line, and a malformed digest reaches no path at all."""
        objects, file = self.make(tmp_path), StoredFile("weights", _NOWHERE, 4)
        assert not objects.holds("blob", _NOWHERE)
        refused(DamagedError, lambda: objects.get(_NOWHERE))
        for full in (False, True):
            assert objects.blob_problems(file, full=full)
            assert objects.adapter_problems(_NOWHERE, [file], full=full)
        for digest in ("", "..", "../" + _NOWHERE, _NOWHERE + "/..", "A" * 64):
            refused(DamagedError, partial(objects.get, digest))
            refused(DamagedError, partial(objects.local, digest))

    # ---------------------------------------------------------------------------------------------------- refusals

    def test_bad_content_does_not_come_in(self, tmp_path: Path) -> None:
        """Values that are not finite, a header that lies, invalid JSON, names that lead elsewhere."""
        objects = self.make(tmp_path)
        stage = objects.stage(_change(1))
        bad = vector(float("nan"))
        refused(DataError, lambda: stage.add_blob(bad))
        refused(DataError, lambda: stage.add_adapter({**adapter(1.0), "adapter_model.safetensors": bad}))
        refused(DataError, lambda: stage.add_adapter({"adapter_config.json": b"{", "a.safetensors": vector(1.0)}))
        refused(DataError, lambda: stage.add_adapter({"a.safetensors": vector(1.0)[:-1]}))
        for name in ("../x", "a/b", ".hidden", ""):
            refused(ConfigError, partial(stage.add_adapter, {name: b"x"}))
        stage.discard()
        assert list(objects.list()) == []

    # ---------------------------------------------------------------------------------------------------- damage

    def test_damage_is_found_and_mended_by_the_same_content(self, tmp_path: Path) -> None:
        """A changed byte is found by hashing, never returned, and disappears when the content is placed again."""
        objects = self.make(tmp_path)
        stage = put(objects, 1, b"rows", 1.0)
        (blob,), (folder,) = stage.blobs, stage.adapters
        for digest in (blob, folder):
            self.spoil(tmp_path, digest)
        refused(DamagedError, lambda: self.make(tmp_path).get(blob))
        assert objects.blob_problems(stage.blobs[blob])
        assert objects.adapter_problems(folder, stage.adapters[folder])
        put(objects, 2, b"rows", 1.0)
        assert whole(self.make(tmp_path), stage)
        assert objects.get(blob) == b"rows"

    # --------------------------------------------------------------------------------------------------- deleting

    def test_what_is_deleted_is_gone_and_nothing_else(self, tmp_path: Path) -> None:
        """Also from another view; it can come back."""
        objects = self.make(tmp_path)
        first, second = put(objects, 1, b"one", 1.0), put(objects, 2, b"two", 2.0)
        gone = {*first.blobs, *first.adapters}
        for kept in list(objects.list()):
            if kept.digest in gone:
                objects.delete(kept)
        view = self.make(tmp_path)
        assert {kept.digest for kept in view.list()} == {*second.blobs, *second.adapters}
        assert whole(view, second)
        assert not any(view.holds("blob", digest) for digest in first.blobs)
        assert all(view.blob_problems(file) for file in first.blobs.values())
        assert whole(objects, put(objects, 3, b"one", 1.0))

    # ------------------------------------------------------------------------------------------------ kill points

    def test_a_change_that_is_cut_off_leaves_each_object_whole_or_absent(self, tmp_path: Path) -> None:
        """Before every single write, from the first byte to the last; the next that places the same completes it."""
        step, done = 0, False
        while not done:
            step += 1
            folder = tmp_path / str(step)
            folder.mkdir()
            done = self._runs(step, partial(put, self.make(folder), 1, b"rows", 1.0))
            view = self.make(folder)
            expected = put(self.make(tmp_path / "sound" / str(step)), 1, b"rows", 1.0)
            self._judge(view, expected)
            assert whole(view, put(view, 2, b"rows", 1.0))
            assert {kept.digest for kept in view.list() if kept.kind != "debris"} == _digests(expected)
        assert step > 1, "no write was counted: say by which calls of os it writes, or override cut_off"

    def test_a_deletion_that_is_cut_off_leaves_each_object_whole_or_absent(self, tmp_path: Path) -> None:
        """What it leaves beside is listed as debris, and can be deleted."""
        step, done = 0, False
        while not done:
            step += 1
            folder = tmp_path / str(step)
            folder.mkdir()
            stage = put(self.make(folder), 1, b"rows", 1.0)
            done = self._runs(step, partial(_clear, self.make(folder)))
            view = self.make(folder)
            self._judge(view, stage)
            _clear(view)
            assert list(view.list()) == []
        assert step > 1

    def _runs(self, step: int, action: Callable[[], object]) -> bool:
        """Whether an action ends before it is cut off."""
        try:
            with self.cut_off(step):
                action()
        except Cut:
            return False
        return True

    def _judge(self, view: Objects, stage: Staging) -> None:
        for kept in view.list():
            if kept.kind == "blob":
                assert view.blob_problems(stage.blobs[kept.digest], strict=True) == []
            elif kept.kind == "adapter":
                assert view.adapter_problems(kept.digest, stage.adapters[kept.digest], strict=True) == []


def put(objects: Objects, number: int, blob: bytes, weight: float) -> Staging:
    """Place a blob and an adapter of one weight."""
    stage = objects.stage(_change(number))
    stage.add_blob(blob)
    stage.add_adapter(adapter(weight))
    stage.place()
    stage.discard()
    return stage


def whole(objects: Objects, stage: Staging) -> bool:
    """Whether all that was staged is there and is what it was."""
    return not any(
        (
            *(problem for file in stage.blobs.values() for problem in objects.blob_problems(file, strict=True)),
            *(
                problem
                for digest, files in stage.adapters.items()
                for problem in objects.adapter_problems(digest, files, strict=True)
            ),
        )
    )


def adapter(weight: float) -> dict[str, bytes]:
    """The files of an adapter of one weight."""
    return {"adapter_config.json": _CONFIG, "adapter_model.safetensors": vector(weight)}


def vector(*values: float) -> bytes:
    """A safetensors file with one vector, written from the format's description."""
    header = {"lora_A": {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, 4 * len(values)]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + struct.pack(f"<{len(values)}f", *values)


def _clear(objects: Objects) -> None:
    for kept in list(objects.list()):
        objects.delete(kept)


def _digests(stage: Staging) -> set[str]:
    return {*stage.blobs, *stage.adapters}


def _change(number: int) -> str:
    return f"{number:032x}"
