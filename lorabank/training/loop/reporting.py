"""What a training writes of its steps into the file that others follow."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from lorabank.bank.progress import ProgressFile
from lorabank.training.loop.holding import Holding
from lorabank.training.loop.loss_terms import LossTerms


class StepsReported(TrainerCallback):
    """Writes steps at most once a second, and the first and the last one always.

    Args:
        file: Where to.
        terms: The terms of the loss, which are read by the end of a step.
        holding: What measures held-out rows; None without any.
    """

    def __init__(self, file: ProgressFile, terms: LossTerms, holding: Holding | None) -> None:
        self._file, self._terms, self._holding = file, terms, holding
        self._rate: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write where the steps begin, and how many there will be."""
        self._file.begin(state.global_step, state.max_steps)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the learning rate of the step."""
        self._rate = kwargs["optimizer"].param_groups[0]["lr"]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the step, if it is time."""
        if not self._file.due and state.global_step < state.max_steps and not control.should_training_stop:
            return
        holding = self._holding
        measured = holding is not None and holding.last_step
        self._file.step(
            state.global_step,
            state.max_steps,
            epoch=state.epoch,
            learning_rate=None if self._rate is None else float(self._rate),
            terms=self._terms.read,
            held_out={"step": measured, **holding.last._asdict()} if holding and measured else {},
        )
