"""``verify``: the bank, and with ``--full`` the weights of its base model, whatever is kept of them."""

from __future__ import annotations

from pathlib import Path

from lorabank.bank.bank import Bank
from lorabank.core.commands import Command
from lorabank.core.errors import LorabankError
from lorabank.core.records import Finding


def verify(path: str | Path, *, full: bool, part: tuple[int, int] | None) -> tuple[Finding, ...]:
    """What is wrong with a bank; a base model that is not on this disk is not looked for elsewhere."""
    bank = Bank.open(path)
    found = bank.verify(full=full, part=part)
    return (*found, *_of_base(bank)) if full and not found else tuple(found)


def _of_base(bank: Bank) -> tuple[Finding, ...]:
    """What is wrong with the weights of a bank in which nothing else is."""
    from lorabank.models.bases.fingerprint import quantised_fingerprint
    from lorabank.models.bases.kept_facts import read_weight_facts
    from lorabank.models.bases.quantised.recipe import is_ours
    from lorabank.models.bases.resolving import folder_of

    base = bank.snapshot().base
    folder = folder_of(base)
    if folder is None:
        return ()
    try:
        found = read_weight_facts(folder).fingerprint
        if base.quantisation is not None and is_ours(base.quantisation):
            found = quantised_fingerprint(found, base.quantisation)
        message = "" if found == base.fingerprint else f"{folder} holds other weights"
    except LorabankError as error:
        message = error.message
    hint, cure = "restore the model that the bank was made with", (Command("-b", "NEW", "init", "--base", "FOLDER"),)
    return (Finding("base-model", base.name, message, hint, cure),) if message else ()
