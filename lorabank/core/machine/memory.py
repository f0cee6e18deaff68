"""The peak of this process's memory, counted anew from a moment on."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_KIB = 1 << 10


class PeakMemory:
    """Counts from its making on.

    On Linux, of the resident set (``VmHWM`` of proc(5)); where the kernel does not count anew, nothing is known. What
    was freed before is given back to the system first, as far as the C library can: it would be used again uncounted.
    """

    def __init__(self) -> None:
        self._counts = False
        gc.collect()
        with suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            _RESET.write_text("5", encoding="ascii")  # 5: the peak becomes what is resident now
            self._before = _of("VmRSS")
            self._counts = True

    def added(self) -> int | None:
        """Bytes above what was resident at the beginning; None where it is not known."""
        return max(0, _of("VmHWM") - self._before) if self._counts else None


def _of(field: str) -> int:
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * _KIB
