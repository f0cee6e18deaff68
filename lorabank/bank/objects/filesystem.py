"""What kind of file system a bank lies on: network file systems keep neither what WAL nor what file locks need.

WAL shares memory between processes of one machine, and on some network file systems a lock is accepted and ignored.
There the database uses a rollback journal, and ``gc`` needs a grace, because it cannot rely on the lock alone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = frozenset(
    (
        "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "fuse.beegfs", "fuse.ceph", "fuse.gcsfuse",
        "fuse.glusterfs", "fuse.juicefs", "fuse.lustre", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "fuse.goofys",
        "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb2", "smb3",
        "smbfs", "virtiofs", "vboxsf", "wekafs",
    )
)  # fmt: skip


def network_filesystem(path: Path) -> str | None:
    """The type of the network file system that a path (or the folder it would be made in) lies on, None if local.

    The kernel's table of mounts and not ``statfs``: that calls everything from FUSE by one number, sshfs and a local
    disk alike. Where there is no such table (not Linux), every path counts as local.
    """
    try:
        table = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    kind = filesystem_of(os.path.realpath(path), table)
    return kind if kind in _NETWORK else None


def filesystem_of(path: str, table: str) -> str:
    """The type of the mount that holds an absolute path; of mounts over each other the later one counts."""
    best, found = -1, ""
    for line in table.splitlines():
        fields, _, rest = line.partition(" - ")
        point = _unescaped(fields.split(" ")[4]).rstrip("/")
        if (path == point or path.startswith(f"{point}/")) and len(point) >= best:
            best, found = len(point), rest.partition(" ")[0]
    return found


def _unescaped(text: str) -> str:
    """Blanks and backslashes stand as octal numbers in the table."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
