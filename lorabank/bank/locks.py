"""The bank's file lock and the question whether the process behind a reservation still lives.

The lock orders writers against ``gc`` and upgrades; it is never what correctness rests on alone, because some
network file systems accept ``flock`` and ignore it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lorabank.core.errors import BusyError
from lorabank.core.records import OperationRecord

TIMEOUT = 30.0
"""Seconds to wait for a lock: longer than any commit, shorter than a user's patience."""

LEASE = timedelta(minutes=10)
"""An operation of another host counts as alive for so long after it was seen: its process cannot be asked from here.

It is seen every minute (``heartbeat``). The width allows for clocks that differ, in both directions: a date that lies
further ahead is a wrong clock's or a stranger's, and not a lease.
"""


@contextmanager
def bank_lock(path: Path, *, exclusive: bool, timeout: float = TIMEOUT) -> Iterator[None]:
    """Hold the lock file of a bank.

    Args:
        path: The lock file; it is made when missing.
        exclusive: Alone (``gc``, upgrade, creation), or shared with other writers.
        timeout: Seconds to wait.

    Raises:
        BusyError: Another process kept the lock for longer than ``timeout``.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _acquire(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, path, timeout)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def folder_lock(path: Path, *, timeout: float = TIMEOUT) -> Iterator[None]:
    """Hold a folder alone, to choose a name in it; otherwise as ``bank_lock``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _acquire(descriptor, fcntl.LOCK_EX, path, timeout)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, kind: int, path: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"bank {path.parent}: another process holds the lock",
                    hint="wait for it to end and try again",
                    unchanged="the bank was not changed",
                ) from None
            time.sleep(0.02)


def boot_id() -> str:
    """Changes with every start of the machine; empty where the system has no such thing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def host_name() -> str:
    """The name under which this machine (or container) writes reservations."""
    return socket.gethostname()


def process_start(pid: int) -> int:
    """Start time of a process in clock ticks since boot, 0 when it is gone and -1 when the system cannot tell.

    A process id alone is not enough: ids come round again, in containers at once.
    """
    import psutil

    if not psutil.LINUX:  # elsewhere the time of the boot and the start of a process do not move alike
        return -1
    try:
        # psutil tells the start by the clock. Counted from the boot, by the same clock, it never changes.
        boot, process = psutil.boot_time(), psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return 0
        start = process.create_time() - boot
        return round(start * os.sysconf("SC_CLK_TCK")) if psutil.boot_time() == boot else process_start(pid)
    except psutil.NoSuchProcess:
        return 0
    except (psutil.Error, OSError):
        return -1


def is_alive(operation: OperationRecord, started: int) -> bool:
    """Whether the process behind a reservation still works on it.

    Args:
        operation: The reservation; process id 0 says that it was given up.
        started: What ``process_start`` said when it was made.
    """
    if operation.pid == 0:
        return False
    if operation.host != host_name():
        return _is_leased(operation.seen_at)
    if operation.boot_id != boot_id():
        return False
    now = process_start(operation.pid)
    if now >= 0 and started > 0:
        return now == started
    import psutil

    return bool(psutil.pid_exists(operation.pid))


def _is_leased(seen_at: str) -> bool:
    try:
        seen = datetime.fromisoformat(seen_at)
        return abs(datetime.now(UTC) - seen) <= LEASE
    except (TypeError, ValueError, OverflowError):  # no date, or one without a time zone: lorabank writes neither
        return False
