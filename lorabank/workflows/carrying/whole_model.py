"""A whole model in the place of an adapter: a checkpoint of transformers, a GGUF file, or a base in few bits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from lorabank.bank.objects.store import check_space
from lorabank.core.errors import ConfigError, IncompatibleError
from lorabank.core.records import BaseModelRecord
from lorabank.exchange.peft_folder import CONFIG_FILE, combined_files
from lorabank.exchange.safe_folders import in_folder, new_folder
from lorabank.exchange.tuners.folder import read_tuner
from lorabank.models.bases.loading import recorded_weights
from lorabank.models.bases.quantised.recipe import is_ours
from lorabank.models.tuners.library import delta_weights
from lorabank.workflows.carrying.checkpoint import write_checkpoint
from lorabank.workflows.carrying.gguf_file import MODELFILE, convert, find_converter, modelfile
from lorabank.workflows.carrying.merged import merged_card, merged_files
from lorabank.workflows.carrying.model_card import CARD_FILE, Facts, card

_LORA = "LORA"
"""PEFT's name of adapters of factors."""

_UNCHANGED = "nothing was written"


def write_whole(
    target: Path, files: Mapping[str, bytes], facts: Facts, *, dtype: str | None
) -> tuple[tuple[str, ...], str]:
    """Write a folder with the base and an adapter in it, whole or not at all.

    Args:
        target: A folder that does not exist or is empty.
        files: PEFT's files of the adapter, as the bank stores them.
        facts: Of its card; ``whole`` says whether it is llama.cpp's file or a checkpoint.
        dtype: Of the weights; None for the base's.

    Returns:
        The names of the files, and what it is.

    Raises:
        ConfigError: A dtype or GGUF is wanted of a base in few bits.
        IncompatibleError: The adapter cannot be merged into this base.
        MissingExtraError: There is no converter of llama.cpp.
    """
    base, gguf = facts.base, facts.whole == "--gguf"
    if is_ours(base.quantisation):
        if gguf or dtype:
            option = "--gguf" if gguf else "--dtype"
            raise ConfigError(
                f"{option}: the bank keeps its base in few bits ({base.quantisation})",
                hint="export it --merged alone, or from a bank that was made without --quantise",
                unchanged=_UNCHANGED,
            )
        found = merged_files(files, base, facts.labels)
        found |= {CARD_FILE: merged_card(facts.name, facts.note, base, target.name)}
        said = "merged into the zero points of the base"
    elif base.quantisation is not None:
        raise IncompatibleError(
            f"the base is quantised ({base.quantisation}), and an adapter cannot be added to such weights",
            hint="export it without --merged",
            unchanged=_UNCHANGED,
        )
    else:
        found, said = {CARD_FILE: card(facts)}, f"merged into the base, {dtype or base.dtype}"
    converter = find_converter(base.task_type) if gguf else None
    if (kind := json.loads(files[CONFIG_FILE])["peft_type"]) != _LORA:
        files = _in_factors(files, base)
        said += f" by the delta weights of {kind}"
    with new_folder(target) as folder:
        if not is_ours(base.quantisation):
            checkpoint = folder / "checkpoint" if converter else folder
            checkpoint.mkdir(exist_ok=True)
            write_checkpoint(checkpoint, files, base, facts.labels, dtype)
            if converter:
                name = f"{facts.name}.gguf"
                check_space(folder, sum(path.stat().st_size for path in checkpoint.iterdir()))
                convert(converter, checkpoint, folder / name, dtype or base.dtype)
                shutil.rmtree(checkpoint)
                found |= {MODELFILE: modelfile(facts, name)}
        for name, data in found.items():
            (folder / name).write_bytes(data)
        return tuple(sorted(path.name for path in folder.iterdir())), said


def _in_factors(files: Mapping[str, bytes], base: BaseModelRecord) -> dict[str, bytes]:
    """PEFT's files of a tuner's adapter as those of an adapter of full rank, which adds the same to the weights."""
    with in_folder(files) as folder:
        state, head = read_tuner(folder)
    return combined_files(
        delta_weights(state, recorded_weights(base)).factors(),
        head,
        base_model=base.name,
        task_type=base.task_type,
        head_modules=state.config.get("modules_to_save") or (),
    )
