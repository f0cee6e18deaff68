"""``lorabank db``."""

from __future__ import annotations

from lorabank_cli.main import Lazy

COMMANDS = {"upgrade": ("db_upgrade:upgrade", "Bring the database to this version of lorabank.")}

db = Lazy("db", "Maintain the bank's database.", COMMANDS)
