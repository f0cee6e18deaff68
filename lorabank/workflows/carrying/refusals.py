"""What cannot be exported as it was asked for: why, and the commands that write what is nearest to it."""

from __future__ import annotations

from collections.abc import Sequence

from lorabank.compose.base import Composer, with_its_settings
from lorabank.core.commands import Command
from lorabank.core.errors import ConfigError, IncompatibleError
from lorabank.core.methods import has_setting
from lorabank.core.records import BaseModelRecord, CompositionRecord
from lorabank.core.shelves import SUMMING
from lorabank.core.states import tuner_named
from lorabank.core.task_kinds import task_kind
from lorabank.workflows.show import listed

_UNCHANGED = "nothing was written"
MOST_PROPOSED = 3
"""Tasks that are proposed one by one."""


def no_single_adapter(
    record: CompositionRecord, composer: Composer, base: BaseModelRecord, exported: Sequence[str]
) -> ConfigError:
    """Why a composition is not a PEFT folder, and what is nearest; ``exported``: the members that can be exported."""
    summed = Command("compose", "--mode", SUMMING, "--tasks", ",".join(record.members))
    if composer.routed:
        why = f"it picks one of {len(record.members)} adapters for each text"
        hint = "export the tasks one by one" if exported else "serve the bank, which answers with it"
        commands = [Command("export", task, f"./{task}-adapter") for task in exported[:MOST_PROPOSED]]
        commands = commands or [Command("serve")]
    elif can_be_cut(record, composer):
        why = "its delta weights have full rank"
        hint = "the same cut to a rank N can be exported, and so can fixed weights"
        commands = [Command(*with_its_settings(record), "--set", "max_rank=N", "--replace"), summed]
        if base.quantisation is None and not task_kind(base.task_type).has_head:
            hint += ", or the whole model"
            commands.append(Command("export", record.name, "FOLDER", "--merged"))
    else:
        why = "its weights depend on the input"
        hint = "fixed weights can be exported"
        commands = [summed]
    return ConfigError(
        f"composition {record.name!r} ({record.mode}) is not a single adapter: {why}",
        hint=hint,
        commands=commands,
        unchanged=_UNCHANGED,
    )


def headless_sum(name: str, members: Sequence[str]) -> IncompatibleError:
    """Why a sum of classifiers is not a whole model, and which models there are in its place."""
    return IncompatibleError(
        f"composition {name!r} is a sum of {listed(members)}, which has no head of its own, and a whole classifier "
        "needs one",
        hint="export its tasks one by one",
        commands=[Command("export", task, f"./{task}-model", "--merged") for task in members[:MOST_PROPOSED]],
        unchanged=_UNCHANGED,
    )


def not_of_factors(name: str, tuner: str, option: str) -> ConfigError:
    """Why a tuner's adapter has no factors, and what makes some of it."""
    again = Command("import", "FOLDER", "--task", f"{name}-lora", "--data", "FILE", "--as-lora", "8")
    why = f"{option} takes adapters of factors A and B, and {name!r} is a {tuner_named(tuner)}"
    hint, commands = "import its export as LoRA of some rank", [Command("export", name, "FOLDER"), again]
    return ConfigError(why, hint=hint, commands=commands, unchanged=_UNCHANGED)


def depends_on_input(name: str, tuner: str) -> ConfigError:
    """Why an adapter that weighs its own parts is neither a PEFT folder nor a weight, and what answers with it."""
    return ConfigError(
        f"{name!r} is a {tuner_named(tuner)}, which weighs its matrices B by the input; neither PEFT nor a weight can "
        "hold it",
        hint="serve the bank, which answers with it, or train the task with --variant lora",
        commands=[Command("serve"), Command("predict", "--task", name)],
        unchanged=_UNCHANGED,
    )


def can_be_cut(record: CompositionRecord, composer: Composer) -> bool:
    """Whether the composition's method has the setting that cuts what it gives to a rank."""
    shelf = composer.shelf
    name = str(record.parameters.get(shelf.kind)) if shelf else ""
    return shelf is not None and name in shelf and has_setting((shelf,), name, "max_rank")
