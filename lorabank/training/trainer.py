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
from transformers.trainer_callback import PrinterCallback

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
from lorabank.training.loop.loss_terms import LossTerms
from lorabank.training.loop.sampling import LengthPools, Shares
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
        lengths: Tokens of each training row, by which batches are formed.
        penalties: Name, weight and penalty.
        groups: The adapter's factors for the penalties, with the live parameters.
        live: What is trained of the adapter, and its layers.
        after_step: Called after each optimizer step, before it counts as done.
        refresh: Called before the first step and last after each; they recompute what is derived from the parameters.
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
        dropout: bool,
        observer: Observer,
        after_step: Callable[[], None] | None = None,
        refresh: Sequence[Callable[[], None]] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if processes.rank():
            torch.manual_seed(self.args.seed + processes.rank())  # other rows, another dropout
        self._task_loss = task_loss
        self._lengths = lengths
        self._penalties = [entry for entry in penalties if entry[1] > 0]
        self._groups = groups
        self.live = live
        self._dropout = dropout
        self.terms = LossTerms(late=self.args.device.type != "cpu")
        # our loss is a mean: Trainer divides it by the accumulated batches, which it leaves out for a model that would
        # take the number of items itself
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)
        self.add_callback(_AroundSteps(self, observer, after_step, refresh))

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthPools:
        # state.epoch is a whole number when an epoch begins, and in the middle of one when a run is resumed
        return LengthPools(
            self._lengths, self.args.train_batch_size, self.args.seed, lambda: int(self.state.epoch or 0)
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
                hint="--target-modules all-linear, or names of others",
            )
        self._keep_term("loss", whole)
        return (loss, None) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Gradients of the batch's task loss, and after the last batch of an optimizer step those of the penalties."""
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        if not self.accelerator.sync_gradients:
            return loss
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

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trackers get each term of the loss under its own name."""
        super().log(logs | {f"train_{name}": value for name, value in self.terms.read.items()}, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Replaces Trainer's checkpoints, which are written in place and partly pickled."""
        self.terms.settle()  # nothing is kept of a training that diverged
        states = processes.gathered(random_state())
        if not self.args.should_save:
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        optimizer = self.optimizer.state_dict()
        folder = Path(self._get_output_dir(trial=trial))
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        trainer_state = (folder / TRAINER_STATE_NAME).read_text(encoding="utf-8")
        (folder / TRAINER_STATE_NAME).unlink()
        save_checkpoint(
            folder,
            self.state.global_step,
            {"trainable": self._trainable(), "optimizer": _optimizer_tensors(optimizer)}
            | {_rng(rank): tensors for rank, (tensors, _) in enumerate(states)},
            {
                "optimizer": optimizer["param_groups"],
                "scheduler": self.lr_scheduler.state_dict(),
                "trainer_state": json.loads(trainer_state),
            }
            | {_rng(rank): facts for rank, (_, facts) in enumerate(states)},
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over what is trained, in Trainer's groups and those of the variant."""
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
            adamw, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            apart = [{"weight_decay": self.args.weight_decay} | group for group in apart]
            self.optimizer = adamw(groups + apart, **settings)
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

    def lacking(self, checkpoint: Path) -> str | None:
        """The first tensor in training that a checkpoint does not hold in its shape; None where it holds all."""
        stored = {name: tensor.shape for name, tensor in read_tensors(checkpoint, "trainable").items()}
        return next((name for name, tensor in self._trainable().items() if stored.get(name) != tensor.shape), None)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        stored = read_tensors(Path(resume_from_checkpoint), "trainable")
        with torch.no_grad():
            for name, parameter in self._trainable().items():
                parameter.copy_(stored[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        folder = Path(checkpoint)
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in read_tensors(folder, "optimizer").items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = tensor
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
        self._renew()  # a checkpoint may have been read

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.live.parametrization.before_step(Step(state.global_step + 1, state.max_steps))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._after_step is not None:
            self._after_step()
        self._trainer.live.parametrization.after_step(Step(state.global_step, state.max_steps))
        self._renew()
        self._observer.advance(state.global_step, self._trainer.terms.read)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.terms.settle()

    def _renew(self) -> None:
        self._trainer.live.refresh()
        for renew in self._refresh:
            renew()


def _rng(rank: int) -> str:
    return f"rng-{rank}" if rank else "rng"


def _optimizer_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value
        for index, entry in state["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }
