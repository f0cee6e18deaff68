"""``lorabank init``."""

from __future__ import annotations

from lorabank.core.commands import ADD_TASK
from lorabank.core.config import InitConfig
from lorabank.core.escaping import safe
from lorabank_cli.render.text import pairs
from lorabank_cli.settings import show_settings
from lorabank_cli.verb import Run, verb


@verb(
    "init",
    configs={"Bank": InitConfig},
    dry_run=True,
    examples=(
        "init",
        "init --base distilbert/distilbert-base-uncased",
        "init -b team/bank --base ./encoder",
        "init --base ./my-model --quantise nf4",
    ),
)
def init(run: Run) -> None:
    """Make an empty bank for a base model.

    A bank belongs to one base model; every adapter in it is trained on that base. add-task makes the bank by itself
    when there is none, so this is only needed to choose before the first task.
    """
    config = run.config(InitConfig)
    if run.dry_run:
        show_settings(run, "would make a bank with these settings")
        return
    from lorabank import api

    snapshot = api.init_bank(run.bank, config, run.observer)
    base = snapshot.base
    text = pairs(
        [
            ("base", f"{base.name} ({base.source}{', ' + base.revision if base.revision else ''})"),
            ("parameters", base.parameters),
            ("dtype", base.dtype),
            *([("quantisation", base.quantisation)] if base.quantisation else []),
            ("fingerprint", base.fingerprint),
        ]
    )
    document = {"bank": run.bank, "id": snapshot.id, "base": base}
    run.output.data(document, f"made a bank at {safe(run.bank)}\n{text}\n{run.output.next(ADD_TASK)}")
