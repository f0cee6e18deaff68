"""``lorabank compose``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lorabank.core.commands import Command
from lorabank.core.config import ComposeConfig
from lorabank.core.escaping import safe
from lorabank.core.settings import setting_fields
from lorabank_cli.options import remarked
from lorabank_cli.render.output import plain
from lorabank_cli.render.text import farthest, outline, pairs, shortened
from lorabank_cli.settings import show_settings
from lorabank_cli.verb import Run, verb


@verb(
    "compose",
    configs={"Composition": ComposeConfig},
    required=("mode",),
    dry_run=True,
    examples=(
        "compose --mode routed",
        "compose --mode prototype --name nearest",
        "compose --mode manual --weights sentiment=0.7,spam=0.3",
        "compose --mode attention --tasks sentiment,spam",
    ),
)
@remarked
def compose(run: Run, note: str | None, tags: tuple[str, ...]) -> None:
    """Make several adapters answer together.

    merged adds their delta weights, with weights that you choose, to one constant state; routed finds each text's
    task by a router and uses that task's adapter and head; gated weighs the states of all tasks, per module and text
    or token, and learns how from the samples kept in the bank. manual, prototype and attention are other names of the
    three. Take routed first.
    """
    from lorabank import api

    config = run.config(ComposeConfig)
    if run.dry_run:
        members = api.plan_compose(run.bank, _for_its_mode(run, config))
        show_settings(run, f"would make composition {config.name or config.mode}", plan={"members": members})
        return
    with run.observer as observer:
        result = api.compose(run.bank, _for_its_mode(run, config), observer, note=note, tags=tags)
    made = result.composition
    facts = pairs(
        [
            ("mode", made.mode),
            ("members", shortened(made.members)),
        ]
    )
    follow = run.output.next(Command("eval", "--composition", made.name, "--forgetting-matrix"))
    told = plain(result.report, run.output.bank)
    told |= {name: farthest(told[name]) for name in ("relative_error", "distance") if told.get(name)}
    report = outline(told)
    parts = [f"made composition {safe(made.name)} in {safe(run.bank)}", report, facts, follow]
    run.output.data(result, "\n".join(part for part in parts if part))


def _for_its_mode(run: Run, config: ComposeConfig) -> ComposeConfig:
    """The settings without those of a file or the environment that are for other modes; typed ones are refused."""
    from lorabank.compose.base import unused_settings

    default: dict[str, Any] = {one.name: one.default for one in setting_fields(ComposeConfig)}
    others = [name for name in unused_settings(config.mode) if not run.flags([name])]
    return replace(config, **{name: default[name] for name in others})
