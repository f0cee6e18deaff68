"""``python -m lorabank_cli`` is ``lorabank``."""

from __future__ import annotations

import gc
import os
import sys


def run() -> int:
    """`lorabank_cli.main.main`, imported without garbage collection: what modules make stays to the end."""
    gc.disable()
    from lorabank_cli.main import main

    return main()


if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path[0] == os.getcwd():
        del sys.path[0]  # with -m Python looks for modules there first, and a stranger may have filled the folder
    sys.exit(run())
