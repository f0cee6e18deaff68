"""PEFT's folder format, in and out: ``adapter_config.json`` and ``adapter_model.safetensors``.

What is written loads with plain ``PeftModel.from_pretrained`` and with servers that read PEFT folders; the config is
built from a fixed list of fields. What is read here was written here; `lorabank.models.foreign` reads the folders of
others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from lorabank.core.errors import DataError
from lorabank.core.lora import LoraFactors, lora_scaling

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the name of every tensor."""


def adapter_files(
    factors: LoraFactors,
    head: Mapping[str, Tensor],
    *,
    base_model: str,
    task_type: str,
    r: int,
    lora_alpha: float,
    use_rslora: bool,
    head_modules: Sequence[str],
    lora_dropout: float = 0.0,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
) -> dict[str, bytes]:
    """File name to bytes of an adapter whose scaling follows from ``lora_alpha`` and ``r``.

    Args:
        factors: The adapter; its ``scaling`` must be what the settings give.
        head: Full parameter name to tensor of the modules stored whole.
        base_model: Hub id or path of the base, as PEFT writes it.
        task_type: PEFT's ``TaskType`` name.
        r: Rank.
        lora_alpha: Numerator of the scaling.
        use_rslora: Whether the scaling is ``lora_alpha / sqrt(r)``.
        head_modules: Modules that PEFT must save and load whole.
        lora_dropout: As used while training.
        rank_pattern: Module name to its rank where that is not ``r``.
        alpha_pattern: Module name to its ``lora_alpha`` where that is another one.
    """
    config = _config(base_model, task_type, sorted(factors.A), head_modules) | {
        "r": r,
        "lora_alpha": int(lora_alpha) if float(lora_alpha).is_integer() else lora_alpha,
        "use_rslora": use_rslora,
        "lora_dropout": lora_dropout,
        "rank_pattern": dict(rank_pattern or {}),
        "alpha_pattern": dict(alpha_pattern or {}),
    }
    return _files(config, factors, head)


def combined_files(
    factors: LoraFactors,
    head: Mapping[str, Tensor],
    *,
    base_model: str,
    task_type: str | None,
    head_modules: Sequence[str],
) -> dict[str, bytes]:
    """File name to bytes of an adapter with s = 1 and any rank per module (``rank_pattern``).

    Args:
        factors: At least one module, as `AdapterStack.combine` or `compress` make it.
        head: Full parameter name to tensor of the modules stored whole.
        base_model: Hub id or path of the base, as PEFT writes it.
        task_type: PEFT's ``TaskType`` name; None for a classifier's adapter without a head, as PEFT would look for
            one.
        head_modules: Modules that PEFT must save and load whole.
    """
    ranks = {module: a.shape[0] for module, a in factors.A.items()}
    most = max(ranks.values(), default=1)
    other = {module: rank for module, rank in ranks.items() if rank != most}
    config = _config(base_model, task_type, sorted(factors.A), head_modules) | {
        "r": most,
        "lora_alpha": most,
        "rank_pattern": other,
        "alpha_pattern": other,
    }
    return _files(config, factors, head)


def read_adapter(folder: Path) -> tuple[LoraFactors, dict[str, Tensor], dict[str, Any]]:
    """An adapter folder's factors, head tensors by full parameter name, and config.

    Raises:
        DataError: If a key is neither a LoRA factor nor part of a saved module, or a factor lacks its partner.
    """
    config = json.loads((folder / CONFIG_FILE).read_text())
    tensors = load_tensors((folder / WEIGHTS_FILE).read_bytes())
    A, B, head = {}, {}, {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if name == key:
            raise DataError(f"{folder / WEIGHTS_FILE}: tensor {key!r} is not part of an adapter")
        if name.endswith(".lora_A.weight"):
            A[name.removesuffix(".lora_A.weight")] = tensor
        elif name.endswith(".lora_B.weight"):
            B[name.removesuffix(".lora_B.weight")] = tensor
        else:
            head[name] = tensor
    if A.keys() != B.keys():
        raise DataError(f"{folder / WEIGHTS_FILE}: lora_A and lora_B are not there for the same modules")
    return LoraFactors(A, B, {module: _scaling(config, module, a) for module, a in A.items()}), head, config


def _config(
    base_model: str, task_type: str | None, target_modules: Sequence[str], head_modules: Sequence[str]
) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "revision": None,
        "inference_mode": True,
        "target_modules": list(target_modules),
        "modules_to_save": list(head_modules) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def _files(config: Mapping[str, Any], factors: LoraFactors, head: Mapping[str, Tensor]) -> dict[str, bytes]:
    tensors = {f"{PREFIX}{module}.lora_A.weight": a for module, a in factors.A.items()}
    tensors |= {f"{PREFIX}{module}.lora_B.weight": b for module, b in factors.B.items()}
    tensors |= {f"{PREFIX}{name}": value for name, value in head.items()}
    still = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    return {
        CONFIG_FILE: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        WEIGHTS_FILE: save_tensors(still, metadata={"format": "pt"}),
    }


def _scaling(config: Mapping[str, Any], module: str, a: Tensor) -> float:
    alpha = by_pattern(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    return lora_scaling(a.shape[0], alpha, use_rslora=bool(config.get("use_rslora")))


def by_pattern(pattern: Mapping[str, float], module: str, default: float) -> float:
    """PEFT's rule for literal names: the first key that equals the module or ends it after a dot counts."""
    return next((value for key, value in pattern.items() if f".{module}".endswith(f".{key}")), default)
