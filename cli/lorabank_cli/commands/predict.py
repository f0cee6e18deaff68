"""``lorabank predict``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from lorabank.core.config import PredictConfig
from lorabank_cli.streams import given_texts
from lorabank_cli.text import table, terminal_width
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
        "predict - < lines.txt",
    ),
)
@click.argument("texts", nargs=-1, metavar="[TEXT]...", help="Text to label; '-' reads one text per line from stdin.")
def predict(run: Run, texts: tuple[str, ...]) -> None:
    """Label texts with a composition or one task.

    Prints the label, its probability, whose head answered, in which state, and the weight of each adapter. With --task
    the task id is given and no router picks an adapter; without it a routed composition finds the task.
    """
    from lorabank import api

    given = given_texts(texts)
    if not given and not run.ctx.params["data"]:
        raise click.UsageError("Missing a TEXT, '-' or '--data'.")
    with run.observer as observer:
        predictions = api.predict(run.bank, given, run.config(PredictConfig), observer=observer)
    run.output.data({"predictions": predictions}, _text(predictions))


def _text(predictions: Sequence[Prediction]) -> str:
    rows = [
        (p.label, p.probability, p.task, p.task_id, p.composition or p.state, _adapters(p.adapters), p.text)
        for p in predictions
    ]
    return table(
        ("label", "probability", "task", "task id", "state", "adapters", "text"), rows, limit=terminal_width()
    )


def _adapters(weights: dict[str, float]) -> str:
    return ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items()) or "none"
