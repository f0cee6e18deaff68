"""transformers' Trainer with the penalties, a finite-loss check and verified checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, TrainerState

from lorabank.core.errors import IncompatibleError
from lorabank.core.machine import distributed as processes
from lorabank.core.observer import Observer
from lorabank.training.checkpoints import (
    random_state,
    read_facts,
    read_tensors,
    restore_random_state,
    save_checkpoint,
)
from lorabank.training.layers.live import SUBMODULE, Live
from lorabank.training.loop.curve import CurveRecorder
from lorabank.training.loop.holding import Holding
from lorabank.training.loop.loss_terms import LossTerms
from lorabank.training.loop.sampling import LengthPools, Shares
from lorabank.training.optimizers.base import Optimizer, described
from lorabank.training.optimizers.state import joined, parted
from lorabank.training.penalties.base import FactorGroup, Penalty
from lorabank.training.variants.base import Step

TaskLoss = Callable[[nn.Module, dict[str, Tensor]], Tensor]
"""Mean loss of a batch, from the model and the batch (labels included)."""


class AdapterTrainer(Trainer):
    """Trains what ``requires_grad`` in the model under ``task loss + sum_p weight_p * penalty_p``.

    The penalties are added once per optimizer step, whatever the gradient accumulation, and only when their weight is
    not zero. They have a graph of their own, outside of autocast, whose gradients are added to those of the task loss.
    Several processes (`lorabank.core.machine.distributed`) share the rows of each batch.

    Args:
        task_loss: The loss of one batch.
        lengths: Tokens of each row of an epoch, by which batches are formed; the data set may have more rows.
        penalties: Name, weight and penalty.
        groups: The adapter's factors for the penalties, with the live parameters.
        live: What is trained of the adapter, and its layers.
        optimize: The optimizer.
        after_step: Called after each optimizer step, before it counts as done.
        refresh: Called before the first step and last after each; they recompute what is derived from the parameters.
        holding: Measures held-out rows between steps; the best step is what is left at the end. None for no such rows.
        dropout: Whether the base's own dropout is on; the adapter's is its own matter.
        observer: Gets loss and penalties after each optimizer step.
        kwargs: Passed to `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        task_loss: TaskLoss,
        lengths: Sequence[int],
        penalties: Sequence[tuple[str, float, Penalty]],
        groups: Callable[[], list[FactorGroup]],
        live: Live,
        optimize: Optimizer,
        dropout: bool,
        observer: Observer,
        holding: Holding | None = None,
        after_step: Callable[[], None] | None = None,
        refresh: Sequence[Callable[[], None]] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if processes.rank():
            torch.manual_seed(self.args.seed + processes.rank())  # other rows, another dropout
        self._task_loss = task_loss
        self.lengths = lengths
        self._penalties = [entry for entry in penalties if entry[1] > 0]
        self._groups = groups
        self.live = live
        self._optimize = optimize
        self._dropout = dropout
        self.terms = LossTerms(late=self.args.device.type != "cpu")
        self.recorder, self.holding = CurveRecorder(), holding
        # our loss is a mean: Trainer divides it by the accumulated batches, which it leaves out for a model that would
        # take the number of items itself
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)
        self.add_callback(_AroundSteps(self, observer, after_step, refresh))

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthPools:
        # state.epoch is a whole number when an epoch begins, and in the middle of one when a run is resumed
        return LengthPools(
            self.lengths, self.args.train_batch_size, self.args.seed, lambda: int(self.state.epoch or 0)
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches; of several processes each reads its share of every batch."""
        if processes.count() == 1:
            return super().get_train_dataloader()
        assert self.train_dataset is not None
        batches = BatchSampler(self._get_train_sampler(), self.args.train_batch_size, drop_last=False)
        return DataLoader(
            self.train_dataset,
            batch_sampler=Shares(batches, processes.rank(), processes.count()),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The batch's task loss."""
        if not self._dropout:
            model.eval()
        loss, whole = processes.weighed(self._task_loss(model, inputs), inputs["labels"])
        if not loss.requires_grad:
            raise IncompatibleError(
                "no text passes through the adapted modules (they may be in a part for images or sounds)",
                unchanged="the adapter was not added to the bank",
                hint="use --target-modules all-linear, or name other modules",
            )
        self._keep_term("loss", whole)
        return (loss, None) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Gradients of the batch's task loss, and after the last batch of an optimizer step those of the penalties."""
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        if not self.accelerator.sync_gradients:
            return loss
        self.live.parametrization.after_loss(self._step())
        groups = self._groups() if self._penalties else []
        penalized = torch.zeros((), device=loss.device)
        for name, weight, penalty in self._penalties:
            value = penalty(groups)
            self._keep_term(name, value)
            penalized = penalized + weight * value
        if penalized.requires_grad:  # a method may fix what the penalty is about
            penalized.backward()
        self.live.pull()
        own = self.live.parametrization.loss(self._step())
        if own is not None:
            self._keep_term("variant", own)
            if own.requires_grad:  # a strategy may fix what it is about
                own.backward()
            penalized = penalized + own
        self.terms.close(self._step().number)
        return loss + penalized.detach()

    def _step(self) -> Step:
        """The optimizer step that is under way."""
        return Step(self.state.global_step + 1, self.state.max_steps)

    def _keep_term(self, name: str, value: Tensor) -> None:
        self.terms.add(self._step().number, name, value)

    def settle(self) -> None:
        """Read what is left of the terms of the loss, and note it."""
        self.terms.settle()
        self.note()

    def note(self) -> None:
        """Put the loss that was read last into the curve."""
        self.recorder.loss(self.terms.step, self.terms.read.get("loss", 0.0))

    def look(self) -> bool:
        """Measure the held-out rows if it is time; whether they were measured."""
        holding, step = self.holding, self.state.global_step
        if holding is None or not holding.look(step, self.state.max_steps, self._trainable()):
            return False
        if self.args.logging_strategy != "no":
            self.log({"eval_loss": holding.last.loss, "eval_accuracy": holding.last.accuracy})
        return True

    def take_best(self) -> bool:
        """Give the model what a checkpoint of the best step would hold, if steps were measured; whether they were."""
        if self.holding is None or not self.holding.best:
            return False
        self._take(self.holding.best)
        self.stand_behind(self.holding.best_step)
        return True

    def stand_behind(self, done: int) -> None:
        """Let the parametrization find the place in its plan that it has after so many steps."""
        assert self.optimizer is not None
        self.live.parametrization.resume(Step(done + 1, self.state.max_steps), self.optimizer)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trackers get each term of the loss under its own name."""
        super().log(logs | {f"train_{name}": value for name, value in self.terms.read.items()}, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Replaces Trainer's checkpoints, which are written in place and partly pickled."""
        self.settle()  # nothing is kept of a training that diverged
        states = processes.gathered(random_state())
        if not self.args.should_save:
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        optimizer = self.optimizer.state_dict()
        moments, plain = parted(optimizer["state"])
        folder = Path(self._get_output_dir(trial=trial))
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        trainer_state = (folder / TRAINER_STATE_NAME).read_text(encoding="utf-8")
        (folder / TRAINER_STATE_NAME).unlink()
        save_checkpoint(
            folder,
            self.state.global_step,
            {"trainable": self._trainable(), "optimizer": moments}
            | ({_BEST: self.holding.best} if self.holding and self.holding.best else {})
            | {_rng(rank): tensors for rank, (tensors, _) in enumerate(states)},
            {
                "optimizer": optimizer["param_groups"],
                "optimizer_state": plain,
                _OPTIMIZER: described(self._optimize),
                "scheduler": self.lr_scheduler.state_dict(),
                "trainer_state": json.loads(trainer_state),
                _COURSE: {
                    "curve": self.recorder.facts(),
                    "terms": self.terms.read,
                    "held": self.holding and self.holding.facts(),
                },
            }
            | {_rng(rank): facts for rank, (_, facts) in enumerate(states)},
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer over what is trained, in Trainer's groups and those of the variant."""
        if self.optimizer is None:
            model = self._unwrapped()
            apart = self.live.parametrization.groups(self.args.learning_rate)
            taken = {id(parameter) for group in apart for parameter in group["params"]}
            decayed = set(self.get_decay_parameter_names(model))
            groups: list[dict[str, Any]] = [
                {"params": [], "weight_decay": self.args.weight_decay},
                {"params": [], "weight_decay": 0.0},
            ]
            for name, parameter in self._trained():
                if id(parameter) not in taken:
                    groups[name not in decayed]["params"].append(parameter)
            apart = [{"weight_decay": self.args.weight_decay} | group for group in apart]
            self.optimizer = self._optimize.build(groups + apart, self.args.learning_rate)
        return self.optimizer

    def _unwrapped(self) -> PreTrainedModel:
        model: PreTrainedModel = self.accelerator.unwrap_model(self.model)
        return model

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self._unwrapped().named_parameters():
            if parameter.requires_grad and not self.live.derives(parameter):
                yield name, parameter

    def _trainable(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the model: what is trained, and what else changes between steps."""
        return dict(self._trained()) | dict(self.live.parametrization.named_buffers(SUBMODULE))

    def differs_from(self, checkpoint: Path) -> str | None:
        """Why training cannot continue from a checkpoint of another version, in words; None where it can."""
        stored = {name: tensor.shape for name, tensor in read_tensors(checkpoint, "trainable").items()}
        for name, tensor in self._trainable().items():
            if stored.get(name) != tensor.shape:
                return f"does not hold {name}, which this version trains"
        if not (checkpoint / f"{_OPTIMIZER}.json").exists():  # an older version wrote it
            return None
        own, made = described(self._optimize), read_facts(checkpoint, _OPTIMIZER)
        others = [
            f"{key} = {value!r} and not {own.get(key)!r}" for key, value in made.items() if own.get(key) != value
        ]
        return f"was written by another optimizer: {', '.join(others)}" if others else None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        self._take(read_tensors(folder, "trainable"))
        if not (folder / f"{_COURSE}.json").exists():  # an older version wrote it
            return
        course = read_facts(folder, _COURSE)
        self.recorder.resume(course["curve"])
        self.terms.read = course["terms"]
        if self.holding is not None and course["held"]:
            best = (folder / f"{_BEST}.safetensors").exists()
            self.holding.resume(course["held"], read_tensors(folder, _BEST) if best else {})

    def _take(self, stored: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._trainable().items():
                parameter.copy_(stored[name])

    def take_over(self, checkpoint: Path) -> bool:
        """Take what a checkpoint of the last step holds, as training to its end does; False for any other checkpoint.

        Trainer would make one step more where the last step does not end an epoch.
        """
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            return False
        self.state = state
        self._load_from_checkpoint(str(checkpoint))
        self._load_rng_state(str(checkpoint))
        self.create_optimizer()
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        return True

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        folder = Path(checkpoint)
        plain = read_facts(folder, "optimizer_state") if (folder / "optimizer_state.json").exists() else {}
        state = joined(read_tensors(folder, "optimizer"), plain)
        self.optimizer.load_state_dict({"state": state, "param_groups": read_facts(folder, "optimizer")})
        self.lr_scheduler.load_state_dict(read_facts(folder, "scheduler"))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder, stem = Path(checkpoint), _rng(processes.rank())
        if (folder / f"{stem}.json").exists():  # else there were fewer processes when it was written
            restore_random_state(read_tensors(folder, stem), read_facts(folder, stem))


class _AroundSteps(TrainerCallback):
    def __init__(
        self,
        trainer: AdapterTrainer,
        observer: Observer,
        after_step: Callable[[], None] | None,
        refresh: Sequence[Callable[[], None]],
    ) -> None:
        self._trainer = trainer
        self._observer = observer
        self._after_step = after_step
        self._refresh = refresh

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.stand_behind(state.global_step)
        self._renew()  # a checkpoint may have been read

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = self._trainer.optimizer
        assert optimizer is not None
        rate = optimizer.param_groups[0]["lr"]
        self._trainer.recorder.rate(state.global_step + 1, float(rate))
        self._trainer.live.parametrization.before_step(Step(state.global_step + 1, state.max_steps))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._after_step is not None:
            self._after_step()
        self._trainer.live.parametrization.after_step(Step(state.global_step, state.max_steps))
        self._renew()
        self._trainer.note()
        values = dict(self._trainer.terms.read)
        if self._trainer.look():
            holding = self._trainer.holding
            assert holding is not None
            values |= {"held_out_loss": holding.last.loss, "held_out_accuracy": holding.last.accuracy}
            if holding.stopped:
                control.should_training_stop = True
                control.should_save = False  # a run that is resumed comes to this step again, and stops again
        self._observer.advance(state.global_step, values)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.settle()
        if self._trainer.take_best():
            self._renew()

    def _renew(self) -> None:
        self._trainer.live.refresh()
        for renew in self._refresh:
            renew()


_COURSE = "course"
_BEST = "best"
_OPTIMIZER = "optimizer_settings"
"""Files of a checkpoint: how the training went so far, what was trained at the best step, and what made its steps."""


def _rng(rank: int) -> str:
    return f"rng-{rank}" if rank else "rng"
