"""The PEFT folder of a new adapter, as it enters the bank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lorabank.core.config import TrainConfig
from lorabank.core.errors import IncompatibleError
from lorabank.core.observer import Observer
from lorabank.core.records import BaseModelRecord

if TYPE_CHECKING:
    from lorabank.training.job import TrainedAdapter


def trained_files(base: BaseModelRecord, trained: TrainedAdapter, config: TrainConfig) -> dict[str, bytes]:
    """The PEFT folder of an adapter that was trained here."""
    from lorabank.exchange.peft_folder import adapter_files
    from lorabank.exchange.tuners.folder import tuner_files
    from lorabank.models.bases.loading import recorded_weights

    if trained.tuned:
        modules = trained.head_modules
        return tuner_files(
            trained.tuned, trained.head, base_model=base.name, task_type=base.task_type, head_modules=modules
        )
    return adapter_files(
        trained.factors,
        trained.head,
        base_model=base.name,
        task_type=base.task_type,
        r=config.r,
        lora_alpha=config.lora_alpha,
        use_rslora=config.use_rslora,
        head_modules=trained.head_modules,
        weight=recorded_weights(base),
    )


def stored_files(
    files: Mapping[str, bytes], base: BaseModelRecord, labels: int, observer: Observer
) -> Mapping[str, bytes]:
    """A new adapter's files as plain PEFT reads them where they lie; where it cannot, a notice says so."""
    from lorabank.exchange.peft_check import plain_files

    try:
        return plain_files(files, base, labels)
    except IncompatibleError as error:
        observer.notice(f"{error.message}; lorabank answers with it, and its export will be refused")
        return files
