"""``lorabank predict``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from lorabank.core.config import PredictConfig
from lorabank_cli.answers import Form, answer_options, asked_texts, write_rows
from lorabank_cli.render.text import table, terminal_width
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.workflows.results import Prediction


@verb(
    "predict",
    configs={"Answering": PredictConfig},
    examples=(
        "predict 'A wonderful film.'",
        "predict --task spam 'You have won a prize'",
        "predict --task spam --state learnt 'You have won a prize'",
        "predict --composition routed --data texts.csv --text-column body --json",
        "predict --composition routed --data texts.csv --text-column body --output labelled.csv",
        "predict --composition routed --abstain 0.8 'What time is it?'",
        "predict - < lines.txt",
    ),
)
@click.argument("texts", nargs=-1, metavar="[TEXT]...", help="Text to label; '-' reads one text per line from stdin.")
@answer_options
def predict(run: Run, texts: tuple[str, ...], output: str | None, form: Form | None, overwrite: bool) -> None:
    """Label texts with a composition or one task.

    The command prints the label, its probability, whose head answered, in which state, and the weight of each adapter.
    With --task the task id is given and no router picks an adapter; without it a routed composition finds the task. If
    standard output is not a terminal, the rows are tab-separated; --output writes them to a file.
    """
    from lorabank import api

    given, config = asked_texts(run, texts), run.config(PredictConfig)
    if write_rows(run, config, given, output=output, form=form, overwrite=overwrite, lines="tsv"):
        return
    with run.observer as observer:
        predictions = api.predict(run.bank, given, config, observer=observer)
    run.output.data({"predictions": predictions}, _text(predictions))


def _text(predictions: Sequence[Prediction]) -> str:
    rows = [
        (_label(p), p.probability, p.task, p.task_id, p.composition or p.state, _adapters(p.adapters), p.text)
        for p in predictions
    ]
    return table(
        ("label", "probability", "task", "task id", "state", "adapters", "text"), rows, limit=terminal_width()
    )


def _label(prediction: Prediction) -> str:
    """The label; of a text that was set aside, the tasks that it resembles most."""
    if prediction.label is not None:
        return prediction.label
    nearest = [f"{task} {share:.2f}" for task, share in getattr(prediction, "posterior", {}).items()]
    return f"none of these tasks ({', '.join(nearest[:3])})" if nearest else "none of these tasks"


def _adapters(weights: dict[str, float]) -> str:
    return ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items()) or "none"
