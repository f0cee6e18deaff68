"""A limited address space (``ulimit -v``), asked before what needs much of it is loaded.

Python says what it lacks, but the libraries of NumPy and PyTorch end the process where it stands, with a line of their
own, when they cannot be mapped whole. So the limit is compared with what loading them takes, before they are loaded.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_MIB = 1 << 20
_NEEDS = {
    "hashlib": 40 * _MIB,  # prints tracebacks for algorithms that it cannot load
    "numpy": 192 * _MIB,  # with the buffers of its BLAS
    "torch": 448 * _MIB,  # with SciPy, transformers and a small model; beside its own libraries
}
"""What the process takes with a module loaded."""


def guard() -> None:
    """Look at each import from now on; where the address space has no limit there is nothing to be done."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        sys.meta_path.insert(0, _Guard(limit))


class _Guard:
    """A finder that finds nothing, and refuses what does not fit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Leave the module to the other finders.

        Raises:
            StorageError: It would not fit.
        """
        if name in _NEEDS:
            need = _NEEDS[name] + _library_bytes(name)
            if self._limit < need:
                from lorabank.core.errors import StorageError

                raise StorageError(
                    f"out of memory: the address space is limited to {self._limit // _MIB} MiB, and {name} needs "
                    f"{need // _MIB} MiB",
                    hint="ulimit -v unlimited",
                    unchanged="nothing was changed",
                )
        return None


def _library_bytes(package: str) -> int:
    """Bytes of the shared objects in a package's folder ``lib``."""
    spec = PathFinder.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    return sum(file.stat().st_size for folder in folders or () for file in Path(folder, "lib").glob("*.so*"))
