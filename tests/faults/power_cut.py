"""F5: the power goes while a bank is written, on a real ext4.

A small ext4 image is mounted through a loop device; a child adds, composes and removes there and says what is done.
At a random moment the file system is shut down without writing its journal out (``FS_IOC_SHUTDOWN`` with
``NOLOGFLUSH``): what was not synced is gone, as after a power cut. It is mounted again and judged: nothing
acknowledged is lost, ``verify --full`` finds nothing. Needs root and loop devices. It covers what ext4 does with
what it was told to keep, not what a drive does with its own cache.

A power cut takes the writer with it; here it lives on for the milliseconds in which the file system goes down, and a
sync that was under way then can still return without an error. So a ``done`` counts when it was said before the cut
began; a change that was under way may have happened or not, as a whole.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
import time
from pathlib import Path

from lorabank.core.errors import LorabankError
from tests.faults.outcome import Outcome, skipped
from tests.faults.processes import Child, Say, cannot_mount, mounted, scratch
from tests.faults.random_kills import change_forever, compare, names
from tests.faults.workload import filled, hold_open, opened

SHUTDOWN = 0x8004587D
"""``FS_IOC_SHUTDOWN``: ``_IOR('X', 125, __u32)``."""
NO_LOG_FLUSH = 2
LONGEST = 0.5
CUTS_AN_IMAGE = 10
_AT = "at="


def run(count: int | None, seed: int) -> Outcome:
    """``count`` power cuts, 50 unless said otherwise."""
    if reason := cannot_cut():
        return skipped(reason)
    chance = random.Random(seed)
    outcome = Outcome()
    with scratch() as folder:
        left = count or 50
        while left:
            cuts = min(left, CUTS_AN_IMAGE)
            image = _new_image(folder / "image")
            with mounted(folder / "disk", "-o", "loop", str(image)) as disk:
                shutil.copytree(filled(), disk / "place")
                expected = names(opened(disk / "place"))
            for number in range(cuts):
                said = _cut(image, folder / "disk", chance)
                outcome.tries += 1
                with mounted(folder / "disk", "-o", "loop", str(image)) as disk:
                    where = f"cut {number}, after {said[-1] if said else 'nothing'!r}"
                    try:
                        expected = compare(opened(disk / "place"), expected, said, outcome, where)
                    except LorabankError as error:
                        outcome.find("damaged", f"{where}: {error.message}")
                        break
            left -= cuts
    return outcome


def cannot_cut() -> str | None:
    """Why no power cut can be made here, None when it can."""
    if shutil.which("mkfs.ext4") is None:
        return "mkfs.ext4 is not installed"
    if reason := cannot_mount():
        return reason
    try:
        with scratch() as folder, mounted(folder / "m", "-o", "loop", str(_new_image(folder / "image"))):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no loop device can be mounted ({error})"


def _new_image(image: Path) -> Path:
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(160 * 1024**2)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1", str(image)], check=True, capture_output=True)
    return image


def _write(place: Path, label: int, say: Say) -> None:
    """Half of the writers have a reader beside them, so that what they commit stays in the log."""
    if label % 2:
        hold_open(place)
    change_forever(place, label, lambda line: say(f"{line} {_AT}{time.monotonic_ns()}"))


def _cut(image: Path, folder: Path, chance: random.Random) -> list[str]:
    """Write, cut the power, and give what the writer had said by then."""
    with mounted(folder, "-o", "loop", str(image)) as disk:
        label = chance.randrange(10**9)
        child = Child(lambda say: _write(disk / "place", label, say))
        child.begin()
        said = [child.lines.readline().rstrip("\n") for _ in range(chance.randrange(1, 7))]
        time.sleep(chance.uniform(0, LONGEST))
        root = os.open(disk, os.O_RDONLY)
        began = time.monotonic_ns()
        try:
            fcntl.ioctl(root, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(root)
        child.kill()
        said += child.said()
        child.wait()
        return acknowledged(said, began)


def acknowledged(said: list[str], began: int) -> list[str]:
    """What a writer had said when the power went at ``began``: up to the first change that it ended later."""
    heard = []
    for text, _, moment in (line.partition(f" {_AT}") for line in said):
        if text.startswith("done") and int(moment) >= began:
            break
        heard.append(text)
    return heard
