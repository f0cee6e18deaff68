"""``lorabank db upgrade``."""

from __future__ import annotations

from lorabank.core.escaping import safe
from lorabank_cli.render.output import plain
from lorabank_cli.render.text import pairs
from lorabank_cli.verb import Run, verb


@verb("upgrade", dry_run=True, examples=("db upgrade --dry-run", "db upgrade"))
def upgrade(run: Run) -> None:
    """Bring the database to this version of lorabank.

    A backup is made first, and the upgrade is one transaction: it happens whole or not at all.
    """
    from lorabank import api

    result = api.upgrade(run.bank, dry_run=run.dry_run)
    if result.before == result.after:
        text = f"{safe(run.bank)} is up to date ({safe(result.after)})"
    else:
        head = "would upgrade" if run.dry_run else "upgraded"
        facts = pairs([("from", result.before), ("to", result.after), ("backup", result.backup)])
        text = f"{head} {safe(run.bank)}\n{facts}"
    run.output.data({"dry_run": run.dry_run, **plain(result)}, text)
