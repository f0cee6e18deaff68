"""``python -m tests.faults.fuzz_atheris TARGET FOLDER -runs=N``: libFuzzer on one target; a finding ends it."""

from __future__ import annotations

import contextlib
import sys

import atheris

with atheris.instrument_imports(include=["lorabank"]):
    from lorabank.core.errors import LorabankError
    from tests.faults.fuzz_targets import TARGETS


def main() -> None:
    """Hand the rest of the command line to libFuzzer."""
    target = TARGETS[sys.argv[1]]

    def feed(data: bytes) -> None:
        with contextlib.suppress(LorabankError):
            target(data)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
