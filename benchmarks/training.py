"""What the benchmarks of a training step share: trainers for one batch, a step as a call, what a step keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from benchmarks.harness import Result
from benchmarks.models import DROPOUT, new_adapter
from benchmarks.published import published_penalty
from lorabank.algebra.stack import AdapterStack
from lorabank.core.observer import SilentObserver
from lorabank.training.factor_groups import GroupedFactors
from lorabank.training.layers.attaching import Attached
from lorabank.training.layers.live import Live
from lorabank.training.optimizers.adamw import AdamW
from lorabank.training.penalties.base import Penalty
from lorabank.training.penalties.orthogonal import Orthogonal
from lorabank.training.trainer import AdapterTrainer

LAMBDA = 0.5
MEMORY_BAR = 0.95

Loss = Callable[[nn.Module, dict[str, Tensor]], Tensor]


class PlainTrainer(Trainer):
    """transformers' Trainer with a loss that is given."""

    def __init__(self, loss: Loss, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._loss = loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The given loss of the batch."""
        return self._loss(model, inputs)


class PublishedTrainer(PlainTrainer):
    """With the penalty as it was published, on a model with the layers as they were published."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The given loss and the penalty, at every batch."""
        return super().compute_loss(model, inputs) + LAMBDA * published_penalty(model)


def olora_trainer(
    model: nn.Module, modules: Sequence[str], earlier: AdapterStack, loss: Loss, arguments: TrainingArguments
) -> AdapterTrainer:
    """Our trainer on a model that is frozen but for the new adapter, with the penalty of O-LoRA."""
    model.requires_grad_(False)
    new = new_adapter(model, modules, DROPOUT, earlier)
    return adapter_trainer(model, new, loss, arguments, earlier, [("orthogonal", LAMBDA, Orthogonal())])


def adapter_trainer(
    model: nn.Module,
    new: Attached,
    loss: Loss,
    arguments: TrainingArguments,
    earlier: AdapterStack | None = None,
    penalties: Sequence[tuple[str, float, Penalty]] = (),
) -> AdapterTrainer:
    """Our trainer of an adapter that is on the model."""
    return AdapterTrainer(
        model=model,
        args=arguments,
        task_loss=loss,
        lengths=(),
        penalties=penalties,
        groups=GroupedFactors(new.layers, earlier, with_basis=False),
        live=Live(model, new.layers, new.parametrization),
        optimize=AdamW(),
        observer=SilentObserver(),
        dropout=True,
    )


def trainer_step(trainer: Trainer, *batches: dict[str, Tensor]) -> Callable[[], Any]:
    """One training step over the batches, and AdamW, as a call."""
    trainer.create_optimizer()

    def step() -> None:
        trainer.current_gradient_accumulation_steps = len(batches)
        for left, rows in zip(reversed(range(len(batches))), batches, strict=True):
            trainer.accelerator.gradient_state._set_sync_gradients(left == 0)
            trainer.training_step(trainer.model, rows)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        if isinstance(trainer, AdapterTrainer):
            trainer.live.refresh()

    return step


def kept_bytes(trainer: Trainer, rows: dict[str, Tensor]) -> int:
    """Bytes that the task loss keeps for its backward pass, each storage once, the model's own left out.

    Counted, not sampled: what autograd packs while the loss is computed, all alive when the backward pass begins.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in trainer.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    trainer.model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = trainer.compute_loss(trainer.model, rows)
    assert loss.requires_grad  # it holds all that was packed until here
    return sum(kept.values())


def memory_result(benchmark: str, what: str, kept: dict[str, int]) -> Result:
    """What a step of ours keeps against PEFT's, and beside it the published form."""
    what = f"bytes kept for the backward pass, {what}, against plain PEFT LoRA"
    peer = kept["published"] / kept["peft"]
    return Result(benchmark, what, kept["olora"] / kept["peft"], MEMORY_BAR, "x", {"bytes": kept}, peer=peer)
