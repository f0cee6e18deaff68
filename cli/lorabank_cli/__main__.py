"""``python -m lorabank_cli`` is ``lorabank``."""

from __future__ import annotations

import sys

from lorabank_cli.main import main

sys.exit(main())
