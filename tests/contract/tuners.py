"""Folders of PEFT's own tuners, as plain PEFT saves them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

SMALL = {
    "peft:loha": ("r=2", "alpha=4"),
    "peft:lokr": ("r=2", "alpha=4"),
    "peft:oft": ("oft_block_size=8",),
    "peft:boft": ("boft_block_size=4",),
    "peft:hra": ("r=2",),
    "peft:fourierft": ("n_frequency=20", "scaling=20"),
    "peft:waveft": ("n_frequency=20", "scaling=5"),
    "peft:miss": ("r=4",),
    "peft:randlora": ("r=4", "randlora_alpha=40"),
    "peft:c3a": ("block_size=8",),
    "peft:shira": ("r=2",),
    "peft:road": ("group_size=8",),
    "peft:delora": ("r=2",),
}
"""Settings that fit the tiny base; the others are PEFT's defaults."""


def name_of(variant: str) -> str:
    return variant.partition(":")[2]


def peft_folder(base: Path, folder: Path, variant: str, *, head: bool) -> Path:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    folder = folder / name_of(variant)
    if folder.exists():
        return folder
    fields = {key: json.loads(value) for key, _, value in (one.partition("=") for one in SMALL[variant])}
    fields["task_type"] = "SEQ_CLS" if head else "CAUSAL_LM"
    fields["target_modules"] = ["query", "value"] if head else ["q_proj", "v_proj"]
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if head:
            model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        else:
            model = AutoModelForCausalLM.from_pretrained(base)
        model = get_peft_model(model, PEFT_TYPE_TO_CONFIG_MAPPING[name_of(variant).upper()](**fields))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    return folder
