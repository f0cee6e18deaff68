"""What every command is: a ``Verb`` whose function gets a ``Run`` (the bank, the settings, the streams)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click
from click.core import ParameterSource

from lorabank.core.machine import distributed as processes
from lorabank_cli.about import Helped
from lorabank_cli.options import (
    DEFAULT_BANK,
    change_options,
    config_options,
    old_options,
    shared_options,
    spelt,
    variable,
)
from lorabank_cli.render.output import Output

if TYPE_CHECKING:
    from pathlib import Path

    from lorabank_cli.render.progress import ConsoleObserver

C = TypeVar("C")


class Setting(NamedTuple):
    """One resolved setting.

    Attributes:
        name: The field of its config.
        option: What users write: `saving`, which may be repeated, sets the field `savings`.
        value: Its value.
        source: ``flag``, ``env NAME``, ``file PATH`` or ``default``.
    """

    name: str
    option: str
    value: Any
    source: str


class Run:
    """One call of a command."""

    def __init__(self, ctx: click.Context) -> None:
        self.ctx = ctx
        self.dry_run: bool = ctx.params.get("dry_run", False)
        self.output = ctx.ensure_object(Output)

    @property
    def bank(self) -> Path:
        """The bank's folder; see ``bank_of``."""
        from lorabank_cli.place import bank_of

        return bank_of(self.ctx)

    @property
    def observer(self) -> ConsoleObserver:
        """Progress on stderr."""
        from lorabank_cli.render.progress import ConsoleObserver

        return ConsoleObserver(self.output)

    def config(self, config: type[C]) -> C:
        """The checked config of this call.

        Raises:
            ConfigError: Naming every value that does not fit.
        """
        from lorabank.core.settings import modern, old_names, setting_names, validate

        params = self.ctx.params
        given = {name: params[name] for name in (*setting_names(config), *old_names(config)) if name in params}
        values, notices = modern(config, given)
        for notice in notices:
            self.output.notice(notice)
        return validate(config, values, where=str(self.ctx.info_name))

    def settings(self) -> list[Setting]:
        """The bank and every setting of the command's configs, with where each came from."""
        command = self.ctx.command
        assert isinstance(command, Verb)
        spelt_out = {str(p.name): spelt(p) for p in command.params if isinstance(p, click.Option)}
        names = ("bank", *command.settings)
        return [Setting(name, spelt_out.get(name, name), self.ctx.params[name], self._source(name)) for name in names]

    def flags(self, names: Sequence[str]) -> list[str]:
        """The options among ``names`` that were typed, as they were spelt out in full."""
        typed = [name for name in names if self.ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        return [f"--{spelt(p)}" for p in self.ctx.command.params if p.name in typed]

    def confirm(self, question: str) -> None:
        """Ask before something is destroyed; ``--yes`` answers.

        Raises:
            ConfigError: Nobody can be asked.
            click.Abort: The answer was no.
        """
        from lorabank.core.errors import ConfigError
        from lorabank.core.escaping import safe

        if self.ctx.params["yes"]:
            return
        if not sys.stdin.isatty():
            raise ConfigError("this needs confirmation", unchanged="nothing was changed", hint="add --yes")
        click.confirm(safe(question), err=True, abort=True)

    def _source(self, name: str) -> str:
        source = self.ctx.get_parameter_source(name)
        if source is ParameterSource.COMMANDLINE:
            return "flag"
        if source is ParameterSource.ENVIRONMENT:
            param = next(p for p in self.ctx.command.params if p.name == name)
            own = [variable(self.ctx, spelt(param)), variable(self.ctx, name)]
            return f"env {next((one for one in own if os.environ.get(one)), 'LORABANK_' + name.upper())}"
        return f"file {self.ctx.params['config']}" if source is ParameterSource.DEFAULT_MAP else "default"


class Verb(Helped):
    """A command with sections and examples in its help, config options and the shared ones.

    Args:
        examples: Lines that can be typed, without the leading ``lorabank``.
        configs: Section title to config class; each field becomes an option.
        fields: Section title to the fields and their old names that become options, where not all do.
        required: Config fields that must be given.
        dry_run: Whether there is a ``--dry-run``.
        several: Whether several processes can do it together.
        confirm: Whether there is a ``--yes``.
        kwargs: click's own.
    """

    def __init__(
        self,
        *args: Any,
        examples: Sequence[str],
        configs: dict[str, type[Any]] | None = None,
        fields: dict[str, Sequence[str]] | None = None,
        required: Sequence[str] = (),
        dry_run: bool = False,
        several: bool = False,
        confirm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.several = several
        self.examples = tuple(examples)
        self.own = tuple(str(p.name) for p in self.params)
        self.settings: tuple[str, ...] = ()
        options = [p for p in self.params if isinstance(p, click.Option)]
        self.params = [p for p in self.params if isinstance(p, click.Argument)]
        for title, config in (configs or {}).items():
            from lorabank.core.settings import setting_names

            listed = (fields or {}).get(title)
            names = [name for name in setting_names(config) if listed is None or name in listed]
            self.settings += tuple(names)
            declared = [name for name in names if name not in self.own]
            self.params += config_options(config, title, declared, required=frozenset(required))
            self.params += old_options(config, listed)
        self.params += [*options, *change_options(dry_run=dry_run, confirm=confirm), *shared_options()]
        for param in self.params:
            if param.name == "config":
                param.is_eager, param.callback = True, _use_config_file

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command's function with its ``Run`` and its own parameters."""
        run = Run(ctx)
        output, params = run.output, ctx.params
        output.json, output.quiet, output.debug = params["json"], params["quiet"], params["debug"]
        output.bank = params["bank"] if params["bank"] != DEFAULT_BANK else None
        if processes.count() > 1 and not self.several:
            from lorabank.core.errors import ConfigError

            raise ConfigError(
                f"{ctx.command_path} runs in one process, not in {processes.count()}",
                hint="start it without torchrun or accelerate launch",
                unchanged="nothing was changed",
            )
        if params["verbose"] and not output.silent:
            from lorabank_cli.render.text import table

            rows = [(s.option, s.value, s.source) for s in run.settings()]
            output.aside(table(("setting", "value", "source"), rows))
        own = {name: value for name, value in params.items() if name in self.own and name not in self.settings}
        assert self.callback is not None
        return ctx.invoke(self.callback, run, **own)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options by section, the general ones last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if isinstance(param, click.Option) and record is not None:
                last = param is self.get_help_option(ctx)
                title = "General" if last else getattr(param, "section", "Options")
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, each on its own line."""
        with formatter.section("Examples"):
            formatter.write("".join(f"{' ' * formatter.current_indent}lorabank {line}\n" for line in self.examples))


def verb(name: str, **attrs: Any) -> Callable[[Callable[..., Any]], Verb]:
    """Make a command of a function ``(run, own parameters) -> exit code or None``; see ``Verb``."""
    return click.command(name, cls=Verb, context_settings={"help_option_names": ["-h", "--help"]}, **attrs)


def _use_config_file(ctx: click.Context, param: click.Parameter, path: str | None) -> str | None:
    if path is None or ctx.resilient_parsing:
        return path
    from lorabank_cli.configfile import read_config

    root = ctx.find_root()
    group = root.command
    assert isinstance(group, click.Group)
    shared = [p for p in ctx.command.params if getattr(p, "shared", False)]
    found = read_config(path, group.list_commands(root), lambda name: group.get_command(root, name), shared)
    ctx.default_map = {**found[""], **found.get(str(ctx.info_name), {})}
    return path
