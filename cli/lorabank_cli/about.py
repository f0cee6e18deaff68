"""What the command line says of itself: ``--help`` and ``--version``, as text or as one JSON document."""

from __future__ import annotations

from typing import Any

import click

from lorabank_cli.render.output import Output


class Helped(click.Command):
    """A command whose ``--help`` is written as every other result is."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """The option that click makes, with a callback of ours."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = _help_option
        return option


def show_help(ctx: click.Context) -> None:
    """Write the help of a command; of a group also its commands, for programs."""
    command, text = ctx.command, ctx.get_help()
    document: dict[str, Any] = {"command": ctx.command_path, "help": text}
    if isinstance(command, click.Group):
        document["commands"] = command.list_commands(ctx)
    ctx.ensure_object(Output).data(document, text)


def version_option() -> click.Option:
    """``--version``."""
    help = "Show the version and exit."
    return click.Option(
        ["--version"], is_flag=True, is_eager=True, expose_value=False, help=help, callback=_version_option
    )


def _help_option(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        show_help(ctx)
        ctx.exit()


def _version_option(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from lorabank import __version__

        ctx.ensure_object(Output).data({"version": __version__}, f"lorabank, version {__version__}")
        ctx.exit()
