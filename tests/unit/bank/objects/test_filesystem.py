"""Network file systems are noticed, and the bank changes its ways there."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lorabank.bank.bank import Bank
from lorabank.bank.objects import filesystem
from lorabank.bank.objects.filesystem import filesystem_of, network_filesystem
from lorabank.core.errors import ConfigError

TABLE = """\
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:30 / /home rw shared:2 - nfs4 server:/home rw
31 30 0:31 / /home/ann/disk rw shared:3 - xfs /dev/sdb1 rw
32 22 0:32 / /mnt/my\\040share rw - cifs //server/share rw
33 22 0:33 / /mnt/over rw - ext4 /dev/sdc1 rw
34 33 0:34 / /mnt/over rw master:1 - fuse.sshfs ann@host: rw
35 22 0:35 / /mnt/fuse rw - fuse.mergerfs pool rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/data/bank", "ext4"),
        ("/home/ann/bank", "nfs4"),
        ("/home", "nfs4"),
        ("/homestead/bank", "ext4"),
        ("/home/ann/disk/bank", "xfs"),
        ("/mnt/my share/bank", "cifs"),
        ("/mnt/over/bank", "fuse.sshfs"),
        ("/mnt/fuse/bank", "fuse.mergerfs"),
    ],
)
def test_the_mount_that_holds_a_path(path: str, kind: str) -> None:
    assert filesystem_of(path, TABLE) == kind


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pretend that everything lies on one file system."""

    def pretend(kind: str) -> None:
        table = tmp_path / "mountinfo"
        table.write_text(f"22 1 0:20 / / rw - {kind} source rw\n")
        monkeypatch.setattr(filesystem, "_MOUNTS", table)

    return pretend


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "lustre", "fuse.sshfs", "ceph", "gpfs"])
def test_network_file_systems_are_known(mounted, tmp_path: Path, kind: str) -> None:
    mounted(kind)
    assert network_filesystem(tmp_path / "not there yet") == kind


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuse.mergerfs"])
def test_local_ones_too(mounted, tmp_path: Path, kind: str) -> None:
    mounted(kind)
    assert network_filesystem(tmp_path) is None


def test_without_a_table_of_mounts_every_path_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "_MOUNTS", tmp_path / "nowhere")
    assert network_filesystem(tmp_path) is None


def journal(bank: Bank) -> str:
    with closing(sqlite3.connect(bank.path / "bank.db")) as connection:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


def test_the_journal_follows_the_place(mounted, folder, kit) -> None:
    mounted("nfs4")
    bank = Bank.create(folder / "bank", kit.base)
    assert journal(bank) == "delete"
    kit.add_task(bank, "a")
    assert bank.verify(full=True) == []
    assert not {"bank.db-wal", "bank.db-shm"} & set(os.listdir(bank.path))
    mounted("ext4")
    kit.add_task(bank, "b", weight=2.0)
    assert journal(bank) == "wal"
    mounted("fuse.sshfs")
    kit.add_task(bank, "c", weight=3.0)
    assert journal(bank) == "delete"
    assert [task.name for task in bank.snapshot().tasks] == ["a", "b", "c"]
    assert bank.verify(full=True) == []


def test_a_reader_does_not_keep_a_writer_out_while_the_journal_changes(mounted, bank, kit) -> None:
    mounted("nfs4")
    with closing(sqlite3.connect(bank.path / "bank.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM tasks").fetchall()
        bank.add_evaluations([kit.evaluation()])
        reader.execute("COMMIT")
    assert len(bank.all_evaluations()) == 1


def test_collection_needs_a_grace_there(mounted, bank) -> None:
    mounted("lustre")
    for hours in (0.0, -1.0):
        with pytest.raises(ConfigError, match="lustre") as caught:
            bank.gc(dry_run=False, grace_hours=hours)
        assert "--grace-hours" in caught.value.hint
    bank.gc(dry_run=False, grace_hours=0.5)
    bank.gc(dry_run=True, grace_hours=0)
