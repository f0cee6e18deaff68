"""``lorabank export``."""

from __future__ import annotations

from typing import Literal

import click

from lorabank.core.escaping import safe
from lorabank_cli.completion import complete_names
from lorabank_cli.render.text import pairs
from lorabank_cli.verb import Run, verb


@verb(
    "export",
    examples=(
        "export sentiment ./sentiment-adapter",
        "export sentiment ./sentiment-then --state learnt",
        "export spam ./spam-only --own",
        "export chat ./chat-adapter --check vllm --with-tokenizer",
        "export chat ./chat-4bit --merged",
    ),
)
@click.argument("name", shell_complete=complete_names, help="A task or a composition.")
@click.argument("target", help="Folder to write; it must not exist.")
@click.option(
    "--state",
    type=click.Choice(["now", "learnt"]),
    help="The task as it answers now, or as it was when it was learnt; default: now.",
)
@click.option("--own", is_flag=True, help="Only the adapter itself, without those that were active beneath it.")
@click.option(
    "--check",
    type=click.Choice(["vllm"]),
    help="Check that this server accepts the adapter; write nothing if it does not.",
)
@click.option("--with-tokenizer", is_flag=True, help="Also write the base's tokenizer and chat template.")
@click.option(
    "--merged", is_flag=True, help="Write the whole quantised base instead, with the adapter in its zero points."
)
def export(
    run: Run,
    name: str,
    target: str,
    state: Literal["now", "learnt"] | None,
    own: bool,
    check: str | None,
    with_tokenizer: bool,
    merged: bool,
) -> None:
    """Write an adapter as a folder that PEFT and vLLM load.

    A task's answer needs every adapter of its state; they are joined into one adapter unless --own is given. The
    folder answers as 'lorabank predict --task NAME' does in the same --state; its model card says how to load it.
    With --merged it is the whole model in few bits: an adapter of qa-lora goes into the zero points of a base that hqq
    keeps, without another rounding.
    """
    from lorabank import api

    result = api.export(
        run.bank, name, target, state=state, own=own, check=check, tokenizer=with_tokenizer, merged=merged
    )
    facts = pairs(
        [
            ("kind", result.kind),
            ("state", result.state),
            ("files", ", ".join(result.files)),
            ("note", result.note or None),
        ]
    )
    run.output.data(result, f"exported {safe(name)} to {safe(result.path)}\n{facts}")
