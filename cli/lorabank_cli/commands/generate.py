"""``lorabank generate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lorabank.core.config import GenerateConfig, SamplingConfig
from lorabank.core.escaping import safe
from lorabank.core.settings import old_names, setting_names
from lorabank_cli.answers import Form, answer_options, asked_texts, write_rows
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.workflows.results import Prediction

SAMPLING = setting_names(SamplingConfig)
ANSWERING = [name for name in (*setting_names(GenerateConfig), *old_names(GenerateConfig)) if name not in SAMPLING]


@verb(
    "generate",
    configs={"Answering": GenerateConfig, "Sampling": GenerateConfig},
    fields={"Answering": ANSWERING, "Sampling": SAMPLING},
    examples=(
        "generate --task summaries 'The council met on Monday ...'",
        "generate --task none 'What is gout?'",
        "generate --composition routed 'What is LoRA?' --max-new-tokens 100",
        "generate --task summaries --raw 'Once upon a time' --temperature 0.8 --top-p 0.95 --stop '.'",
        "generate --task summaries --data articles.jsonl --output answers.jsonl",
        "generate - < prompts.txt",
    ),
)
@click.argument("texts", nargs=-1, metavar="[TEXT]...", help="Prompt; '-' reads one prompt per line from stdin.")
@answer_options
def generate(run: Run, texts: tuple[str, ...], output: str | None, form: Form | None, overwrite: bool) -> None:
    """Generate text from prompts with the bank's language model.

    The state of a composition or of one task answers, with the likeliest token of each step or with draws
    (--temperature), in the task's prompt template or, if it was trained in it, the base's chat template. --task none
    asks the bare base, before and beside every task. Answers go to stdout, those to the rows of --data below what was
    asked, and the state goes to stderr; --json also says what answered.
    """
    from lorabank import api

    given, config = asked_texts(run, texts), run.config(GenerateConfig)
    if write_rows(run, config, given, output=output, form=form, overwrite=overwrite, lines=None):
        return
    with run.observer as observer:
        answers = api.generate(run.bank, given, config, observer=observer)
    for state in dict.fromkeys(_state(answer) for answer in answers if answer.state != "base"):
        run.output.notice(state)
    if run.ctx.params["data"]:
        text = "\n\n".join(map(_pair, answers))
    else:
        text = "\n".join(_lines(answer.label or "") for answer in answers)
    run.output.data({"answers": answers}, text)


def _pair(answer: Prediction) -> str:
    """What was asked and what was answered, told apart at the beginning of their lines."""
    return f"asked:  {_lines(answer.text, 8)}\nanswer: {_lines(answer.label or '', 8)}".rstrip()


def _lines(text: str, indent: int = 0) -> str:
    return f"\n{' ' * indent}".join(map(safe, text.split("\n")))


def _state(answer: Prediction) -> str:
    if answer.composition:
        return f"composition {answer.composition} answers"
    return f"task {answer.task} answers in its state {answer.state}"
