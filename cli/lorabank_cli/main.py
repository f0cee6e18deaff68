"""``lorabank``: the table of commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import click
from click.core import ParameterSource

from lorabank.core.errors import StorageError
from lorabank.core.machine import distributed as processes
from lorabank_cli.about import Helped, show_help, version_option
from lorabank_cli.options import shared_options
from lorabank_cli.render.output import Output
from lorabank_cli.render.room import guard
from lorabank_cli.render.streams import ReaderGone, open_streams

COMMANDS = {
    "init": ("init:init", "Make an empty bank for a base model."),
    "add-task": ("add_task:add_task", "Train an adapter for a new task and add it to the bank."),
    "advise": ("advise:advise", "Find which variant and start suit some rows, before a task is added."),
    "stream": ("stream:stream", "Learn labelled texts in their order, each once, and find the tasks among them."),
    "compose": ("compose:compose", "Make several adapters answer together."),
    "eval": ("eval:evaluate", "Measure what the bank knows and what it forgot."),
    "predict": ("predict:predict", "Label texts with a composition or one task."),
    "generate": ("generate:generate", "Generate text from prompts with the bank's language model."),
    "chat": ("chat:chat", "Talk with the bank's language model."),
    "serve": ("serve:serve", "Answer over HTTP, as OpenAI's API does."),
    "ui": ("ui:ui", "Open the bank's page in the browser."),
    "fold": ("fold:fold", "Replace the adapters of several tasks by one of bounded rank."),
    "list": ("list:list_bank", "List tasks and compositions."),
    "show": ("show:show", "Show everything recorded about a task or composition."),
    "compare": ("compare:compare", "Compare the adapters of two tasks."),
    "methods": ("methods:methods", "List all methods."),
    "remove": ("remove:remove", "Remove a task or composition."),
    "rename": ("rename:rename", "Rename a task or composition."),
    "note": ("note:note", "Attach a note to a task or composition."),
    "tag": ("tag:tag", "Tag a task or composition."),
    "log": ("log:log", "Show what was changed and when."),
    "undo": ("undo:undo", "Undo the last change."),
    "export": ("export:export", "Write an adapter as a PEFT folder, or the whole model with it."),
    "import": ("import_:import_adapter", "Add an adapter that was trained elsewhere."),
    "push": ("push:push", "Send the bank, a task or a composition to a repository on the hub."),
    "pull": ("pull:pull", "Fetch a bank from a repository on the hub."),
    "verify": ("verify:verify", "Check the bank's records and files."),
    "gc": ("gc:gc", "Delete files that nothing refers to."),
    "report": ("report:report", "Write one HTML file about the bank, or about several."),
    "demo": ("demo:demo", "Run the whole workflow on four small tasks."),
    "sequence": ("sequence:sequence", "Compare strategies over orders and seeds."),
    "doctor": ("doctor:doctor", "Check the machine and the bank."),
    "backup": ("backup:backup", "Copy the database, or the whole bank."),
    "restore": ("restore:restore", "Restore a backup."),
    "limits": ("limits:limits", "List the size limits of input."),
    "db": ("db:db", "Maintain the bank's database."),
}
"""Name to module and object below ``lorabank_cli.commands``, and the first line of the help."""

SYNONYMS = {
    "train": "add-task",
    "add": "add-task",
    "evaluate": "eval",
    "test": "eval",
    "ls": "list",
    "rm": "remove",
    "delete": "remove",
    "infer": "predict",
    "upload": "push",
    "download": "pull",
    "merge": "compose",
}
"""What users of neighbouring tools type; the error names the verb."""

EPILOG = """\b
Start in an empty folder:
  lorabank add-task sentiment --data sentiment.jsonl
  lorabank add-task spam --data spam.jsonl
  lorabank compose --mode routed
  lorabank eval --all --forgetting-matrix
Try it without data: lorabank demo

\b
Every option can also come from the environment (LORABANK_BANK,
LORABANK_ADD_TASK_R, ...) or from a TOML file (--config); flags win over
the environment, the environment over the file, the file over defaults.

\b
Completion (add the line to the shell's start-up file):
  bash  eval "$(_LORABANK_COMPLETE=bash_source lorabank)"
  zsh   eval "$(_LORABANK_COMPLETE=zsh_source lorabank)"
  fish  _LORABANK_COMPLETE=fish_source lorabank | source
"""


class Lazy(Helped, click.Group):
    """A group that imports a command when it is called, and hands down the options given before its name.

    Called without a command it shows its help.
    """

    def __init__(self, name: str, help: str, table: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        settings = {"help_option_names": ["-h", "--help"], **kwargs.pop("context_settings", {})}
        super().__init__(
            name, help=help, callback=_alone, invoke_without_command=True, context_settings=settings, **kwargs
        )
        self.table = table
        self.params += shared_options()

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the work."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][0].partition(":")
        found = getattr(import_module(f"lorabank_cli.commands.{module}"), attribute)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without an import."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, help) in self.table.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is answered with the nearest."""
        try:
            name, command, rest = super().resolve_command(ctx, args)
        except click.UsageError:
            if args[0].startswith("-"):
                raise
            from lorabank.core.settings import nearest

            typed = args[0].lower()
            meant = SYNONYMS.get(typed)
            guess = f". Did you mean {meant!r}?" if meant in self.table else nearest(typed, list(self.table))
            raise click.UsageError(f"No such command {args[0]!r}{guess}", ctx) from None
        return name, command, [*self._given(ctx), *rest]

    def _given(self, ctx: click.Context) -> list[str]:
        """The shared options of this call, as words, to be parsed again by the command."""
        words: list[str] = []
        for param in self.params:
            name = str(param.name)
            if getattr(param, "shared", False) and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                words += [f"--{name}"] if ctx.params[name] is True else [f"--{name}", str(ctx.params[name])]
        return words


@click.pass_context
def _alone(ctx: click.Context, /, json: bool, **_: Any) -> None:
    """What a group does before its command: where none is named, the user is shown which there are."""
    if ctx.invoked_subcommand is None:
        ctx.ensure_object(Output).json |= json
        show_help(ctx)


cli = Lazy(
    "lorabank",
    "Train LoRA adapters task after task, keep them in one bank, compose them, measure what was forgotten.",
    COMMANDS,
    params=[version_option()],
    epilog=EPILOG,
    context_settings={"auto_envvar_prefix": "LORABANK"},
)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Words after ``lorabank``, by default those of the process.

    Returns:
        The exit code (docs/errors.md).
    """
    words = list(sys.argv[1:] if args is None else args)
    output = Output(json="--json" in words, debug="--debug" in words, silent=processes.rank() > 0)
    output.words = tuple(words)
    if args is None:
        open_streams()
        guard()
        gc.freeze()  # what the imports made lives to the end: walking it again costs 'list' a twentieth of its time
        gc.enable()
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not under nohup, which ignores it
            signal.signal(signal.SIGINT, output.interrupt)
    try:
        code = _call(words, output)
        sys.stdout.flush()
        return code
    except ReaderGone:
        return 141
    except StorageError as error:  # standard output did not take the result, or the error
        return _failed(error, output)


def _call(words: list[str], output: Output) -> int:
    """Run a command, or write why it failed."""
    try:
        return int(cli.main(words, prog_name="lorabank", standalone_mode=False, obj=output) or 0)
    except ReaderGone:
        raise
    except SystemExit as error:  # click ends a completion so, with 1 for a shell that it does not know
        if not error.code:
            return 0
        return _failed(
            click.UsageError("no completion for this shell; the known ones are bash_source, zsh_source, fish_source"),
            output,
        )
    except (Exception, KeyboardInterrupt) as error:
        return _failed(error, output)


def _failed(error: BaseException, output: Output) -> int:
    try:
        from lorabank_cli.failures import report_failure

        return report_failure(error, output)
    except (ImportError, MemoryError, OSError):  # too little is left even to say so in full
        with suppress(OSError):
            os.write(2, b"error: out of memory, or of open files\n")
        return 10
