"""A loaded model with its linear layers quantised, and corrected where the recipe says so.

A correction takes a while, so what it gives is kept in the user's cache, beside the checkpoints that are made of GGUF
files. Whoever lacks it makes it again.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from lorabank.core.records import BaseModelRecord
from lorabank.models.bases.quantised.corrections.inputs import input_magnitudes
from lorabank.models.bases.quantised.linear import QuantisedLinear
from lorabank.models.bases.quantised.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_KEPT = "kept "
"""With which the names of what a quantiser keeps begin in the cache."""

_VERSION = 2
"""Of how a correction is computed: what was kept under another one is not read."""

_STALE = 24 * 3600
"""Seconds after which an unfinished file is one that a killed process left."""


class Matrix(Protocol):
    """What is read of a linear layer: a `lorabank.models.bases.sites.Site` of a whole module."""

    @property
    def name(self) -> str:
        """Of the module."""
        ...

    @property
    def module(self) -> nn.Module:
        """What keeps it."""
        ...

    @property
    def d_in(self) -> int:
        """Inputs."""
        ...

    @property
    def d_out(self) -> int:
        """Outputs."""
        ...

    def weight(self) -> Tensor:
        """``[d_out, d_in]``, float32."""
        ...


@torch.no_grad()
def quantise_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    matrices: Sequence[Matrix],
    *,
    dtype: torch.dtype,
    record: BaseModelRecord,
) -> None:
    """Put a `QuantisedLinear` in the place of linear layers, one after the other.

    Args:
        model: On the CPU, in eval mode, in the dtype of its files; changed in place.
        tokenizer: Its tokenizer.
        recipe: How the matrices are kept.
        matrices: The layers; no other reference to them should be held, so that each is freed when it is replaced.
        dtype: Of all products, and of what is not quantised.
        record: The quantised base, by which a correction is kept.
    """
    file = _cached(record) if recipe.correction else None
    known = _whole(_read(file), matrices) if file else {}
    places = _places(model)
    inputs: dict[str, Tensor] = {}
    if recipe.correction and recipe.correction.reads_inputs and not known:
        inputs = input_magnitudes(model, tokenizer, [matrix.name for matrix in matrices])
    made: dict[str, dict[str, Tensor]] = {}
    waiting = [*matrices]
    del matrices
    while waiting:
        matrix = waiting.pop(0)
        parts = known.get(matrix.name) or _parts(matrix, recipe, inputs.get(matrix.name))
        layer = _layer(matrix, recipe, parts, dtype)
        for parent, child in places.pop(matrix.module):
            setattr(parent, child, layer)
        if file:
            made[matrix.name] = parts
    if file and not known:
        with suppress(OSError):  # a cache that cannot be written costs time, nothing else
            _sweep(file.parent)
            _write(file, made)
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    for module_name, module in model.named_modules():
        if isinstance(module, QuantisedLinear) or kept & set(module_name.split(".")):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)


def _places(model: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """Where each module stands: a layer may stand in several places."""
    found: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                found.setdefault(child, []).append((parent, name))
    return found


def _parts(matrix: Matrix, recipe: Recipe, inputs: Tensor | None) -> dict[str, Tensor]:
    """What is kept of a matrix, and A and B of its correction."""
    weight = matrix.weight()
    if recipe.correction is None:
        return {f"{_KEPT}{name}": tensor for name, tensor in recipe.quantiser.quantise(weight).items()}
    kept, A, B = recipe.correction.split(weight, recipe.quantiser, inputs)
    return {f"{_KEPT}{name}": tensor for name, tensor in kept.items()} | {"A": A, "B": B}


def _layer(matrix: Matrix, recipe: Recipe, parts: dict[str, Tensor], dtype: torch.dtype) -> QuantisedLinear:
    kept = {name.removeprefix(_KEPT): tensor for name, tensor in parts.items() if name.startswith(_KEPT)}
    bias: Any = matrix.module.bias
    layer = QuantisedLinear(recipe.quantiser, kept, (matrix.d_out, matrix.d_in), dtype, bias)
    if "A" in parts:
        layer.add_beside(parts["A"], parts["B"])
    return layer.train(matrix.module.training)


# -------------------------------------------------------------------------------------------------------- the cache


def _cached(record: BaseModelRecord) -> Path:
    """Where a correction lies; all that it depends on is in the name.

    The class that a task type asks for names its modules in its own way and may go other ways through them.
    """
    from huggingface_hub import constants

    facts = (record.fingerprint, record.task_type, record.config_hash, record.tokenizer_hash, str(_VERSION))
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    return Path(constants.HF_HOME) / "lorabank" / "corrected" / f"{key}.safetensors"


def _read(file: Path) -> dict[str, dict[str, Tensor]]:
    """What was kept, by module; nothing where there is none, or another user could have written it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found: dict[str, dict[str, Tensor]] = {}
    try:
        status = file.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            return {}
        for name, tensor in load_file(file).items():
            module, _, part = name.partition("|")
            found.setdefault(module, {})[part] = tensor
    except (OSError, SafetensorError):
        return {}
    return found


def _whole(found: Mapping[str, dict[str, Tensor]], matrices: Sequence[Matrix]) -> Mapping[str, dict[str, Tensor]]:
    """What was kept where it is there for every matrix, else nothing: no base is made in part of one pass."""
    for matrix in matrices:
        A, B = (found.get(matrix.name, {}).get(part) for part in ("A", "B"))
        if A is None or B is None or (A.shape[1], B.shape[0]) != (matrix.d_in, matrix.d_out):
            return {}
    return found


def _sweep(folder: Path) -> None:
    """Remove what killed processes left."""
    for left in folder.glob("*.part"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink()


def _write(file: Path, made: dict[str, dict[str, Tensor]]) -> None:
    from safetensors.torch import save

    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    data = save({f"{name}|{part}": t.contiguous() for name, parts in made.items() for part, t in parts.items()})
    handle, part = tempfile.mkstemp(prefix=f"{file.stem[:16]}-", suffix=".part", dir=file.parent)
    try:
        with open(handle, "wb") as stream:
            stream.write(data)
        os.replace(part, file)
    except BaseException:
        os.unlink(part)
        raise
