"""Training weights of the base itself, in memory: full fine-tuning, which no adapter of the bank can stand for.

    theta <- step(theta, grad of the mean task loss)         step: --optimizer, AdamW by default
                                                             theta: the weights that are chosen, and the task's head

Rows, batches, their order, schedule, clipping and the choice about dropout are those of an adapter's training
(`lorabank.training.run`), so that the two compare. All weights are float32; on a GPU that computes in bfloat16 the
passes do so under autocast.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from lorabank.core.errors import DivergedError
from lorabank.core.machine.seeding import seed_everything
from lorabank.core.observer import Observer
from lorabank.models.answering.base import check_answer_length
from lorabank.models.bases.kinds.experts import stored_parameters
from lorabank.models.bases.loading import LoadedBase
from lorabank.models.finite import explained
from lorabank.models.tasks.padding import padding_of
from lorabank.training.feeding import encoded_rows, feed
from lorabank.training.job import TrainJob
from lorabank.training.loop.finished import still
from lorabank.training.loop.loss_terms import LossTerms
from lorabank.training.loop.sampling import LengthPools
from lorabank.training.methods import chosen_methods
from lorabank.training.optimizers.base import Optimizer
from lorabank.training.planning import planned_steps
from lorabank.training.run import arguments_of, set_up


class TrainedWeights(NamedTuple):
    """What a training of weights leaves beside the weights, which are the model's.

    Attributes:
        head: State of the task's head by full parameter name, float32 on the CPU; empty for a language model.
        max_length: Tokens of a text: what was asked for, or the model's limit.
        rows_cut: Training rows that were truncated.
        rows_dropped: Training rows that were left out, since their answers do not fit.
        steps: Optimizer steps.
    """

    head: dict[str, Tensor]
    max_length: int
    rows_cut: int
    rows_dropped: int
    steps: int


def train_weights(
    base: LoadedBase, job: TrainJob, trains: Callable[[str], bool], observer: Observer
) -> TrainedWeights:
    """Train weights of a model and a new head, in place.

    Args:
        base: The model, which is this training's own; its weights are float32.
        job: Rows and settings; nothing of the past is looked at.
        trains: Whether a weight of the base is trained, by its name.
        observer: Gets notices and the losses.

    Raises:
        ConfigError, MissingExtraError: The optimizer cannot work here, or rows cannot be packed.
        DivergedError: A loss or a weight is not finite.
    """
    config = replace(job.config, base_dtype="float32")
    job = replace(job, config=config)
    optimizer = chosen_methods(config).optimizer
    if refusal := optimizer.refusal(base.model.device.type):
        raise refusal
    seed_everything(config.seed * 1_000_003 + job.number)
    max_length = min(config.max_length, base.max_length or config.max_length)
    if job.scoring is not None and any(job.texts):
        check_answer_length(job.scoring.answer_tokens, base.max_length)
    task, own = set_up(job, base)
    padding_of(base.model)
    examples = encoded_rows(job, base, max_length, observer)
    of_head = set(own.state()) if own else set()
    for name, parameter in stored_parameters(base.model):
        parameter.requires_grad_(name in of_head or trains(name))
    fed = feed(job, base, task, examples)
    trainer = _WeightsTrainer(
        model=base.model,
        args=arguments_of(job, base.model.device),
        train_dataset=fed.rows,
        data_collator=fed.collate,
        task_loss=fed.loss,
        lengths=fed.lengths,
        optimize=optimizer,
        dropout=config.lora_dropout > 0,
        observer=observer,
    )
    observer.start(f"training ({job.strategy.name})", planned_steps(len(trainer.lengths), config))
    try:
        with warnings.catch_warnings(), explained(base.model):
            warnings.simplefilter("ignore")
            trainer.train()
    finally:
        observer.finish()
    base.model.zero_grad(set_to_none=True)
    _check(base.model)
    base.model.requires_grad_(False).eval()
    head = {name: still(tensor) for name, tensor in own.state().items()} if own else {}
    return TrainedWeights(head, max_length, examples.cut, examples.dropped, int(trainer.state.global_step))


class _WeightsTrainer(Trainer):
    """transformers' Trainer with the batches and the loss of an adapter's training; it writes no checkpoints."""

    def __init__(
        self,
        *,
        task_loss: Callable[[nn.Module, dict[str, Tensor]], Tensor],
        lengths: Sequence[int],
        optimize: Optimizer,
        dropout: bool,
        observer: Observer,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._task_loss, self._dropout, self.lengths = task_loss, dropout, lengths
        self._optimize = optimize
        self.terms = LossTerms(late=self.args.device.type != "cpu")
        self.model_accepts_loss_kwargs = False  # the loss is a mean
        self.remove_callback(PrinterCallback)
        self.add_callback(_Told(self, observer))

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthPools:
        return LengthPools(
            self.lengths, self.args.train_batch_size, self.args.seed, lambda: int(self.state.epoch or 0)
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer over what is trained, in Trainer's groups."""
        if self.optimizer is None:
            assert isinstance(self.model, nn.Module)
            decayed = set(self.get_decay_parameter_names(self.model))
            trained = [(name, one) for name, one in self.model.named_parameters() if one.requires_grad]
            groups: list[dict[str, Any]] = [
                {"params": [one for name, one in trained if name in decayed], "weight_decay": self.args.weight_decay},
                {"params": [one for name, one in trained if name not in decayed], "weight_decay": 0.0},
            ]
            self.optimizer = self._optimize.build(groups, self.args.learning_rate)
        return self.optimizer

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
        loss = self._task_loss(model, inputs)
        self.terms.add(self.state.global_step + 1, "loss", loss)
        return (loss, None) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Gradients of a batch; its loss is read where it is finite."""
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        if self.accelerator.sync_gradients:
            self.terms.close(self.state.global_step + 1)
        return loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Nothing: between two tasks the caller keeps the weights, and within one the training is begun again."""


class _Told(TrainerCallback):
    def __init__(self, trainer: _WeightsTrainer, observer: Observer) -> None:
        self._trainer, self._observer = trainer, observer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._observer.advance(state.global_step, self._trainer.terms.read)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.terms.settle()


def _check(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise DivergedError(
                f"training diverged: {name} is not finite",
                unchanged="nothing of this task was scored",
                hint="lower learning_rate in the strategy's table",
            )
