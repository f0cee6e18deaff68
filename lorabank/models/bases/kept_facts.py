"""What was read of a model's weights once, kept until one of their files changes.

It is kept in memory, and for other processes in the user's cache, beside the checkpoints that are made of GGUF files:
one small file for each model folder. A bank neither holds nor decides what stands there, so that a bank from elsewhere
cannot vouch for a base, and one that cannot be written is read as fast as any other.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorabank.models.bases.fingerprint import DTYPES, WeightFacts, weight_facts, weight_files

Stamp = tuple[tuple[str, int, int, int, int, int], ...]
"""Of each file its path, device, inode, size and, in nanoseconds, the times of its last changes."""

SETTLED = 2_000_000_000
"""Nanoseconds since a file's last change before a stamp stands for its bytes: a clock that ticks more slowly than a
file is written gives two contents one time, as git knows of its index; the coarsest ticks, FAT's, last two seconds."""

LONGEST = 2**24
"""Bytes of what is kept of a model; thousands of files have room in it."""

_FACTS: dict[Stamp, WeightFacts] = {}


def known_weight_facts(folder: Path) -> WeightFacts:
    """What `weight_facts` says of a folder, without reading the weights where their files are those that were read.

    A file counts as the same with its path, inode, size and both of its times: of the content (mtime) and of the
    inode (ctime), which no call can set.

    Raises:
        DataError: As `weight_facts`.
    """
    stamp = _stamp(folder)
    facts = _FACTS.get(stamp) or _stored(stamp)
    if facts is None:
        return read_weight_facts(folder)
    _FACTS[stamp] = facts
    return facts


def read_weight_facts(folder: Path) -> WeightFacts:
    """What `weight_facts` says of a folder now; from then on that is what is kept.

    Raises:
        DataError: As `weight_facts`.
    """
    stamp = _stamp(folder)
    settled = time.time_ns() - max(max(file[4:]) for file in stamp) > SETTLED
    facts = weight_facts(folder)
    if settled and _stamp(folder) == stamp:
        _FACTS[stamp] = facts
        with suppress(OSError):  # a cache that cannot be written costs time, nothing else
            _store(stamp, facts)
    return facts


def _stamp(folder: Path) -> Stamp:
    files = [path.resolve() for path in weight_files(folder)]
    found = [(path, path.stat()) for path in files]
    return tuple((str(path), s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in found)


def _kept(stamp: Stamp) -> Path:
    """The file that keeps what is known of a model: other contents of the same files take its place."""
    from huggingface_hub import constants

    named = hashlib.sha256("\0".join(file[0] for file in stamp).encode("utf-8", "surrogateescape")).hexdigest()
    return Path(constants.HF_HOME) / "lorabank" / "fingerprints" / f"{named[:32]}.json"


def _stored(stamp: Stamp) -> WeightFacts | None:
    """What an earlier process kept; None where there is nothing, or another user could have written it."""
    try:
        with open(os.open(_kept(stamp), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # no pipe blocks
            status = os.fstat(file.fileno())
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                return None
            if not stat.S_ISREG(status.st_mode) or status.st_size > LONGEST:
                return None
            found: Any = json.load(file)
        facts = WeightFacts(found["fingerprint"], found["dtype"], found["parameters"])
        return facts if found["files"] == [list(one) for one in stamp] and _whole(facts) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _whole(facts: WeightFacts) -> bool:
    digest = isinstance(facts.fingerprint, str) and re.fullmatch("[0-9a-f]{64}", facts.fingerprint)
    return bool(digest) and facts.dtype in DTYPES.values() and type(facts.parameters) is int and facts.parameters >= 0


def _store(stamp: Stamp, facts: WeightFacts) -> None:
    target = _kept(stamp)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f"{target.stem}-", suffix=".part", dir=target.parent)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump({"files": stamp, **asdict(facts)}, file)
        os.replace(part, target)
    except BaseException:
        os.unlink(part)
        raise
