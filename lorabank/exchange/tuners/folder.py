"""PEFT's folder of a tuner, in and out: its own config and state dict, with the head beside it.

The folder is what ``PeftModel.save_pretrained`` would write of the same adapter, so plain PEFT loads it where it lies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from torch import Tensor

from lorabank.exchange.peft_folder import CONFIG_FILE, WEIGHTS_FILE, saved
from lorabank.exchange.stored_factors import PREFIX, in_modules
from lorabank.models.tuners.state import TunerState


def tuner_files(
    state: TunerState, head: Mapping[str, Tensor], *, base_model: str, task_type: str, head_modules: Sequence[str]
) -> dict[str, bytes]:
    """File name to bytes of an adapter.

    Args:
        state: The adapter.
        head: Full parameter name to tensor of the modules stored whole.
        base_model: Hub id or path of the base, as PEFT writes it.
        task_type: PEFT's ``TaskType`` name.
        head_modules: Modules that PEFT must save and load whole.
    """
    fields = {
        **state.config,
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "modules_to_save": list(head_modules) or None,
    }
    tensors = {**state.tensors, **{f"{PREFIX}{name}": value for name, value in head.items()}}
    config = (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()
    return {CONFIG_FILE: config, WEIGHTS_FILE: saved(tensors)}


def read_tuner(folder: Path) -> tuple[TunerState, dict[str, Tensor]]:
    """An adapter of a folder that `tuner_files` wrote, and its head's tensors by full parameter name."""
    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    tensors = load_tensors((folder / WEIGHTS_FILE).read_bytes())
    head = in_modules(tensors, config.get("modules_to_save") or ())
    own = {key: tensor for key, tensor in tensors.items() if key not in head.values()}
    return TunerState(config, own), {name: tensors[key] for name, key in head.items()}
