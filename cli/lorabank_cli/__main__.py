"""``python -m lorabank_cli`` is ``lorabank``."""

from __future__ import annotations

import os
import sys

if not sys.flags.safe_path and sys.path[0] == os.getcwd():
    del sys.path[0]  # with -m Python looks for modules in the current folder first, and a stranger may have filled it

from lorabank_cli.main import main

sys.exit(main())
