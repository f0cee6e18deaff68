"""One adapter of the corpus, and the ways to spoil a good one."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
QUERY = f"{PREFIX}bert.encoder.layer.0.attention.self.query"

Spoil = Callable[[Path], Path | None]
"""Changes a good PEFT folder in place; may return another path to import."""


@dataclass(frozen=True)
class Case:
    """An adapter that somebody prepared.

    Attributes:
        name: Class and number as in the list, and what is wrong.
        code: The documented exit code; 0 for what must do no harm.
        spoil: Makes it out of a good folder.
        task: The name it is to be imported under.
        words: More words of the command line.
        during: Surrounds the import.
    """

    name: str
    code: int
    spoil: Spoil
    task: str = "guest"
    words: tuple[str, ...] = ()
    during: Callable[[Path], AbstractContextManager[Any]] = lambda folder: nullcontext()


def write_good(folder: Path, base: Path) -> Path:
    """A PEFT folder for the tiny classifier at ``base``: query and value of two layers, r 2, two labels."""
    torch.manual_seed(11)
    tensors = {f"{PREFIX}classifier.weight": torch.randn(2, 32), f"{PREFIX}classifier.bias": torch.randn(2)}
    for layer in range(2):
        for module in ("query", "value"):
            name = f"{PREFIX}bert.encoder.layer.{layer}.attention.self.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(2, 32)
            tensors[f"{name}.lora_B.weight"] = torch.randn(32, 2)
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": str(base),
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["query", "value"],
        "modules_to_save": ["classifier", "score"],
    }
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def fields(**changes: Any) -> Spoil:
    """Set fields of the config; ``...`` takes one out."""

    def spoil(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | changes
        kept = {name: value for name, value in config.items() if value is not ...}
        (folder / CONFIG).write_text(json.dumps(kept))

    return spoil


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    """Change the tensors in place."""

    def spoil(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file({name: value.contiguous() for name, value in found.items()}, folder / WEIGHTS)

    return spoil


def weights(change: Callable[[bytes], bytes]) -> Spoil:
    """Change the bytes of the weights file."""

    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))

    return spoil


def header(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Change the header of the weights file in place; the tensors' bytes stay."""

    def edit(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + size])
        change(entries)
        return packed(json.dumps(entries).encode(), data[8 + size :])

    return weights(edit)


def packed(text: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file of any header, whose length may be a lie."""
    return struct.pack("<Q", len(text) if length is None else length) + text + data
