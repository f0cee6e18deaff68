"""``lorabank limits``."""

from __future__ import annotations

from lorabank.core.limits import LIMITS
from lorabank_cli.render.text import table
from lorabank_cli.verb import Run, verb


@verb("limits", examples=("limits", "limits --json"))
def limits(run: Run) -> None:
    """List the size limits of input.

    Each is the greatest value that is accepted; free space is the least.
    """
    rows = [(limit.name, f"{limit.value:,}", limit.unit, limit.meaning) for limit in LIMITS]
    run.output.data({"limits": LIMITS}, table(("limit", "value", "unit", "meaning"), rows))
