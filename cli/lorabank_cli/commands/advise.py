"""``lorabank advise``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabank.core.config import AdviseConfig, InitConfig, TrainConfig
from lorabank.core.escaping import safe
from lorabank.core.settings import sections
from lorabank_cli.render.text import named, pairs, size, table
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.workflows.learning.advise import Advice, Trial

NOT_ASKED = (
    "eval_data", "held_fraction", "variant", "start", "max_steps", "eval_every", "early_stopping", "save_steps",
    "report_to", "keep_samples", "clusters_per_task", "head",
)  # fmt: skip
_SECTIONS = sections(TrainConfig, NOT_ASKED)
_HEADER = (
    "variant", "start", "learning rate", "score", "epochs", "steps", "seconds", "trained", "stored", "memory",
    "room left", "overlap",
)  # fmt: skip


@verb(
    "advise",
    configs={"Advice": AdviseConfig, **dict.fromkeys(_SECTIONS, TrainConfig), "New bank": InitConfig},
    fields=_SECTIONS,
    required=("data",),
    examples=(
        "advise --data sentiment.jsonl",
        "advise --data sentiment.jsonl --minutes 3 --variant lora --variant dora --start pissa",
        "advise --data spam.csv --text-column body --label-column kind --strategy isolated --json",
    ),
)
def advise(run: Run) -> None:
    """Find which variant and start suit some rows, before a task is added.

    Each variant and start is trained for a few steps beside the bank, and the best ones for longer (successive
    halving). They are scored on rows that are held out from --data, never on test rows. Plain LoRA at twice its
    learning rate is among them. The bank is not changed.
    """
    from lorabank import api

    with run.observer as observer:
        config, how = run.config(TrainConfig), run.config(AdviseConfig)
        advice = api.advise(run.bank, config, how, init=run.config(InitConfig), observer=observer)
    run.output.data(advice, _text(run, advice))


def _text(run: Run, advice: Advice) -> str:
    left_out = pairs([(safe(name), safe(reason)) for name, reason in advice.left_out.items()])
    return "\n".join(
        [
            f"score: {named(advice.metric)} on {advice.rows} held-out rows, with its 95 % interval",
            table(_HEADER, [_row(trial) for trial in advice.trials]),
            *(["left out", left_out] if advice.left_out else []),
            run.output.next(advice.again, title="to add the task with the best one"),
        ]
    )


def _row(trial: Trial) -> tuple[object, ...]:
    return (
        safe(trial.variant),
        safe(trial.start),
        f"{trial.learning_rate:g}",
        f"{trial.score:.4f} [{trial.low:.4f}, {trial.high:.4f}]",
        f"{trial.epochs:.2g}",
        trial.steps,
        f"{trial.seconds:.1f}",
        f"{trial.parameters:,}",
        size(trial.bytes),
        "" if trial.memory is None else size(trial.memory),
        "" if trial.capacity_left is None else f"{trial.capacity_left:.3f}",
        "" if trial.overlap is None else f"{trial.overlap:.3f}",
    )
