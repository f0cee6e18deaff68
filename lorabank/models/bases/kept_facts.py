"""What was read of a model's weights once, kept until one of their files changes."""

from __future__ import annotations

import time
from pathlib import Path

from lorabank.models.bases.fingerprint import WeightFacts, weight_facts, weight_files

Stamp = tuple[tuple[str, int, int, int, int, int], ...]
"""Of each file its path, device, inode, size and, in nanoseconds, the times of its last changes."""

SETTLED = 2_000_000_000
"""Nanoseconds since a file's last change before a stamp stands for its bytes: a clock that ticks more slowly than a
file is written gives two contents one time, as git knows of its index; the coarsest ticks, FAT's, last two seconds."""

_FACTS: dict[Stamp, WeightFacts] = {}


def known_weight_facts(folder: Path) -> WeightFacts:
    """What `weight_facts` says of a folder, from memory where its files are those that were read.

    A file counts as the same with its path, inode, size and both of its times: of the content (mtime) and of the
    inode (ctime), which no call can set.

    Raises:
        DataError: As `weight_facts`.
    """
    stamp = _stamp(folder)
    if stamp in _FACTS:
        return _FACTS[stamp]
    settled = time.time_ns() - max(max(file[4:]) for file in stamp) > SETTLED
    facts = weight_facts(folder)
    if settled and _stamp(folder) == stamp:
        _FACTS[stamp] = facts
    return facts


def _stamp(folder: Path) -> Stamp:
    files = [path.resolve() for path in weight_files(folder)]
    found = [(path, path.stat()) for path in files]
    return tuple((str(path), s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in found)
