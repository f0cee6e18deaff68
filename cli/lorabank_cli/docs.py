"""``python -m lorabank_cli.docs [FOLDER]`` rewrites the ``--help`` block of each page in docs/commands."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from lorabank_cli.main import cli

_BLOCK = re.compile(r"<!-- help -->\n.*?<!-- /help -->\n", re.DOTALL)


def commands(group: click.Group = cli, path: str = "lorabank") -> Iterator[tuple[str, click.Command]]:
    """Every command with the words that call it; groups come before their commands."""
    yield path, group
    ctx = click.Context(group, info_name=path)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        elif command is not None:
            yield f"{path} {name}", command


def page_name(path: str) -> str:
    """``lorabank db upgrade`` is described in ``db-upgrade.md``, ``lorabank`` itself in ``lorabank.md``."""
    return f"{'-'.join(path.split()[1:]) or 'lorabank'}.md"


def help_block(path: str, command: click.Command) -> str:
    """The command's help as it stands on its page, 80 columns wide."""
    ctx = click.Context(command, info_name=path, terminal_width=80, **command.context_settings)
    return f"<!-- help -->\n```text\n{command.get_help(ctx).rstrip()}\n```\n<!-- /help -->\n"


def with_help(page: str, block: str) -> str:
    """The page with its block replaced, or added at the end."""
    return _BLOCK.sub(lambda _: block, page) if _BLOCK.search(page) else f"{page.rstrip()}\n\n{block}"


def rewrite(folder: Path) -> list[Path]:
    """Bring every page up to date; a page that is missing is begun with its title.

    Returns:
        The pages that changed.
    """
    changed = []
    for path, command in commands():
        page = folder / page_name(path)
        before = page.read_text(encoding="utf-8") if page.exists() else f"# {path}\n"
        after = with_help(before, help_block(path, command))
        if not page.exists() or after != before:
            page.write_text(after, encoding="utf-8")
            changed.append(page)
    return changed


if __name__ == "__main__":
    for written in rewrite(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/commands")):
        click.echo(f"wrote {written}")
