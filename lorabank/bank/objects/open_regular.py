"""Opening stored files in whose place something else may have been put."""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from pathlib import Path

from lorabank.core.errors import DamagedError


def open_plain(path: Path) -> FileIO:
    """Open a regular file to read: a link is not followed, a pipe does not block.

    Raises:
        OSError: It cannot be opened.
        DamagedError: It is a link, or no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamagedError(f"{path}: a link, which is not followed") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedError(f"{path}: not a regular file")
    return FileIO(descriptor)
