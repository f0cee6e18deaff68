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
        "export chat ./chat-model --merged --dtype bfloat16",
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
    type=click.Choice(["vllm", "sglang", "lorax"]),
    help="Check that this server computes the adapter as it is, and say how to start it; else write nothing.",
)
@click.option("--with-tokenizer", is_flag=True, help="Also write the base's tokenizer and chat template.")
@click.option("--merged", is_flag=True, help="Write the whole model instead, with the adapter in its weights.")
@click.option("--gguf", is_flag=True, help="As --merged, but a GGUF file of llama.cpp and a Modelfile of Ollama.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Of the weights of a whole model; default: the base's.",
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
    gguf: bool,
    dtype: Literal["float32", "float16", "bfloat16"] | None,
) -> None:
    """Write an adapter as a PEFT folder, or the whole model with it.

    A task's answer needs every adapter of its state; they are joined into one adapter unless --own is given. The
    folder answers as 'lorabank predict --task NAME' does in the same --state; its model card says how to load it.
    With --merged it is a whole model, which transformers and every server load; in a base that hqq keeps, an adapter
    of qa-lora goes into the zero points, without another rounding.
    """
    from lorabank import api

    result = api.export(
        run.bank,
        name,
        target,
        state=state,
        own=own,
        check=check,
        tokenizer=with_tokenizer,
        merged="gguf" if gguf else merged,
        dtype=dtype,
    )
    facts = pairs(
        [
            ("kind", result.kind),
            ("state", result.state),
            ("files", ", ".join(result.files)),
            ("note", result.note or None),
        ]
    )
    serve = f"\nto serve it:\n  {safe(result.serve)}" if result.serve else ""
    run.output.data(result, f"exported {safe(name)} to {safe(result.path)}\n{facts}{serve}")
