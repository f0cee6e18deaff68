"""``lorabank sequence``."""

from __future__ import annotations

from lorabank_cli.main import Lazy

COMMANDS = {
    "run": ("sequence_run:run_sequence", "Run the experiment of a TOML file, or resume it."),
    "tradeoff": ("sequence_tradeoff:tradeoff", "Show what is learnt against what is forgotten."),
}

sequence = Lazy("sequence", "Compare strategies over orders and seeds.", COMMANDS)
