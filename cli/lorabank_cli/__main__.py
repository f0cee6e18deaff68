"""``python -m lorabank_cli`` is ``lorabank``."""

from __future__ import annotations

import gc
import os
import sys


def run() -> int:
    """`lorabank_cli.main.main`, imported without garbage collection: what modules make stays to the end."""
    gc.disable()
    try:
        from lorabank_cli.main import main

        return main()
    except KeyboardInterrupt:  # before `main` takes it, or another one while the first is answered
        os.write(2, b"error: interrupted\n")
        return 130


if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path[0] == os.getcwd():
        del sys.path[0]  # with -m Python looks for modules there first, and a stranger may have filled the folder
    sys.exit(run())
