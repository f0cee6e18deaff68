"""PEFT folders from elsewhere, judged before anything is built from them.

Nothing here is trusted: a config can ask for other weights, other code or endless patterns, and a tensor file can
bring tensors that PEFT would load over the base model's own. So the config counts field by field, the set of tensors
must be exactly that of a plain LoRA or DoRA adapter, with a head if it is a classifier's, and what passes is written
again in lorabank's own form. `lorabank.exchange.fit_check` compares it with the base model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from lorabank.algebra.biases import ENDING
from lorabank.algebra.factors import LoraFactors, lora_scaling
from lorabank.core.limits import MAX_RANK
from lorabank.exchange.adapted_modules import Pattern, Targets, read_targets
from lorabank.exchange.config_fields import (
    check_plain,
    count,
    names,
    number,
    refuse,
    refuse_field,
    whole_modules,
)
from lorabank.exchange.expressions import Unreadable
from lorabank.exchange.olora_checkpoint import check_part, join_new, rows_of, tasks_in
from lorabank.exchange.peft_folder import CONFIG_FILE, WEIGHTS_FILE
from lorabank.exchange.stored_factors import ENDINGS, MAGNITUDE, OF_ATTENTION, PREFIX, bias_name, matrix_A, matrix_B
from lorabank.exchange.tensor_names import plain_keys

_ORIGINAL = ".base_layer.weight"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class ForeignAdapter:
    """A plain LoRA or DoRA adapter, a classifier's with its head; tensors are float32.

    Attributes:
        factors: The adapter; of DoRA the factors, whose gain takes the base's weights to say (`from_dora`).
        magnitude: Module name to DoRA's magnitudes ``[d_out]``; empty for plain LoRA.
        biases: Name of a bias to what PEFT puts in its place, the base's own ones among them (`with_added`).
        windows: Module name to the dimensions of the stored A behind its rank: ``(d_in,)``, or those of a kernel.
        originals: Embedding to the table that it was trained on, which PEFT saves beside its factors.
        stacked: Module as PEFT names it to A and B of all experts of a parameter (`with_experts`).
        loralib: Module to A and B as loralib keeps them (`with_loralib`).
        enabled: Of fused matrices, which of their parts loralib adapts; empty where that is not known.
        ranks: ``rank_pattern``, where it can be evaluated.
        alphas: ``alpha_pattern``, the same.
        head: Full parameter name to tensor of every module that was saved whole.
        modules_to_save: The modules that the config says are saved whole.
        task_type: PEFT's name, None where the config names none.
        base_model: What the config calls its base model: text, never a path to follow.
        r: Rank of the modules that ``rank_pattern`` does not name.
        lora_alpha: The same for the numerator of the scaling.
        use_rslora: Whether the scaling is ``lora_alpha / sqrt(r)``.
        targets: What the config says of the modules that are adapted.
        rank_pattern: Full module name to a rank other than ``r``.
        alpha_pattern: Full module name to another ``lora_alpha``.
        tasks: How many tasks the folder holds: more than one only in those of O-LoRA's reference implementation.
        ignored: Unknown fields that were passed over.
        taken: What was taken out of the tensors' names.
        file: The name of the file with its tensors, for messages.
    """

    factors: LoraFactors
    head: dict[str, Tensor]
    modules_to_save: tuple[str, ...]
    task_type: str | None
    base_model: str
    r: int
    lora_alpha: float
    use_rslora: bool
    targets: Targets
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    magnitude: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    windows: dict[str, tuple[int, ...]] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)
    stacked: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    loralib: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    enabled: tuple[bool, ...] = ()
    ranks: Pattern | None = None
    alphas: Pattern | None = None
    tasks: int = 1
    ignored: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    file: str = WEIGHTS_FILE


def read_foreign(
    fields: Mapping[str, Any], weights: bytes, *, part: int | None = None, ignore_unknown: bool = False
) -> ForeignAdapter:
    """Read the two files of a PEFT folder.

    Args:
        fields: Of ``adapter_config.json``, as `parse` gives them.
        weights: ``adapter_model.safetensors``; header and finite values are checked by the caller.
        part: Of several tasks in one file the number of the one that is wanted, from 1; None for their sum.
        ignore_unknown: Skip fields of the config that no version of PEFT is known to write.

    Raises:
        DataError: A field or a tensor is not one of a plain LoRA adapter; names it.
        ConfigError: There is no such part.
    """
    ignored = check_plain(fields, ignore_unknown)
    r = count(fields, "r", fields.get("r"))
    alpha = number(fields, "lora_alpha", fields.get("lora_alpha"))
    number(fields, "lora_dropout", fields.get("lora_dropout", 0.0), low=0.0, high=1.0)  # training's, and long past
    rslora, dora = (_switch(fields, name) for name in ("use_rslora", "use_dora"))
    targets, saved = read_targets(fields), names(fields, "modules_to_save")
    tensors, taken = plain_keys(load_tensors(weights))
    magnitude = _magnitudes(tensors) if dora else {}
    originals = _originals(tensors)
    biases = _biases(fields, tensors)
    A, B, head = _split(tensors if "r_sum" not in fields else join_new(tensors), whole_modules(fields))
    _check_pairs(A, B, targets)
    windows = {module: tuple(a.shape[1:]) for module, a in A.items()}
    B = {module: matrix_B(b, len(A[module])) for module, b in B.items()}
    A = {module: matrix_A(a) for module, a in A.items()}
    if dora:
        _check_magnitudes(fields, magnitude, B)
    tasks = 1
    if "r_sum" in fields:
        tasks = tasks_in({module: a.shape[0] for module, a in A.items()}, r, _r_sum(fields))
    if part is not None:
        check_part(part, tasks)
        rows = rows_of(part, r)
        A, B = {name: a[rows] for name, a in A.items()}, {name: b[:, rows] for name, b in B.items()}
    elif tasks > 1:
        r, alpha = r * tasks, alpha * tasks
    stacked = {module: (A[module], B[module]) for module in A if targets.wraps(module)}
    if targets.experts and not stacked:
        refuse_field(fields, "target_parameters", "names parameters of experts, and no tensor is theirs")
    if not (dora or biases):
        _check_trained(A, B)
    A, B = ({module: one for module, one in part.items() if module not in stacked} for part in (A, B))
    rank_of = {module: a.shape[0] for module, a in A.items()}
    _check_ranks(fields, rank_of, r, targets)
    alpha_of = _alphas(fields, rank_of, alpha, targets)
    scaling = {module: lora_scaling(rank_of[module], alpha_of[module], use_rslora=rslora) for module in A}
    return ForeignAdapter(
        factors=LoraFactors(A, B, scaling),
        head=head,
        modules_to_save=saved,
        task_type=fields.get("task_type"),
        base_model=str(fields.get("base_model_name_or_path") or ""),
        r=r,
        lora_alpha=alpha,
        use_rslora=rslora,
        targets=targets,
        rank_pattern={module: rank for module, rank in rank_of.items() if rank != r},
        alpha_pattern={module: value for module, value in alpha_of.items() if value != alpha},
        magnitude=magnitude,
        biases=biases,
        windows=windows,
        stacked=stacked,
        ranks=_readable(fields, "rank_pattern", count),
        alphas=_readable(fields, "alpha_pattern", number),
        originals=originals,
        tasks=tasks,
        ignored=ignored,
        taken=taken,
    )


def _switch(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if type(value) not in (bool, type(None)):
        refuse_field(fields, name, "is neither true nor false")
    return bool(value)


def _check_ranks(fields: Mapping[str, Any], rank_of: Mapping[str, int], r: int, targets: Targets) -> None:
    """The tensors have the ranks that the config says, as far as it can be evaluated."""
    try:
        pattern = _pattern(fields, "rank_pattern", count)
        for module, rank in rank_of.items():
            said = pattern.value(_parameter(module, targets), r)
            if rank != said:
                refuse(f"{WEIGHTS_FILE}: {module!r} has rank {rank}, {CONFIG_FILE} says {said:g}")
    except Unreadable:  # the tensors have ranks of their own
        return


def _alphas(fields: Mapping[str, Any], modules: Iterable[str], alpha: float, targets: Targets) -> dict[str, float]:
    """Module to the numerator of its scaling, which no tensor tells."""
    try:
        pattern = _pattern(fields, "alpha_pattern", number)
        return {module: pattern.value(_parameter(module, targets), alpha) for module in modules}
    except Unreadable as error:
        refuse_field(fields, "alpha_pattern", f"cannot be evaluated: {error}", "write it with the modules' names")


def _readable(
    fields: Mapping[str, Any], field: str, judge: Callable[[Mapping[str, Any], str, Any], float]
) -> Pattern | None:
    try:
        return _pattern(fields, field, judge)
    except Unreadable:
        return None


def _pattern(fields: Mapping[str, Any], field: str, judge: Callable[[Mapping[str, Any], str, Any], float]) -> Pattern:
    values = fields.get(field) or {}
    if not isinstance(values, dict):
        refuse_field(fields, field, "is not an object")
    return Pattern({key: judge(fields, field, value) for key, value in values.items()})


def _parameter(module: str, targets: Targets) -> str:
    """What PEFT calls a module in its patterns: an output projection has no name of its own there."""
    module = module.removesuffix(OF_ATTENTION)
    return f"{module}.weight" if targets.as_parameter(module) else module


def _r_sum(fields: Mapping[str, Any]) -> int:
    """The field of O-LoRA's reference implementation, which knows no patterns and no rsLoRA."""
    value = fields["r_sum"]
    if type(value) is not int or not 0 <= value <= MAX_RANK:
        refuse_field(fields, "r_sum", f"is not a rank from 0 to {MAX_RANK}")
    for name in ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora"):
        if fields.get(name):
            refuse_field(fields, name, "does not match 'r_sum'")
    return value


def _split(
    tensors: Mapping[str, Tensor], saved: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The tensors as ``lora_A``, ``lora_B`` and head; nothing else is let in."""
    A: dict[str, Tensor] = {}
    B: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        kind, ending = _factor(name)
        in_head = _saved_whole(name, tuple(saved))
        if name == key or (kind is None and not in_head):
            refuse(f"{WEIGHTS_FILE}: tensor {key[:200]!r} is neither a LoRA factor nor part of a declared head")
        if tensor.dtype not in _DTYPES:
            refuse(f"{WEIGHTS_FILE}: tensor {key!r} is {tensor.dtype}; float32, float16 and bfloat16 are read")
        if kind is None:
            head[name] = tensor.float()
        else:
            module, part = name.removesuffix(ending), (A, B)[kind]
            if module in part:
                refuse(f"{WEIGHTS_FILE}: tensor {key[:200]!r} is a second factor of its module")
            part[module] = tensor.float()
    return A, B, head


def _originals(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the tables that PEFT saves with adapted embeddings out of the tensors: module name to what it keeps."""
    of_embeddings = ENDINGS[1][0]
    names = [key.removesuffix(of_embeddings) for key in tensors if key.endswith(of_embeddings)]
    found = {name: tensors.pop(f"{name}{_ORIGINAL}") for name in names if f"{name}{_ORIGINAL}" in tensors}
    return {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}


def _biases(fields: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the biases outside of whole modules out of the tensors, where the config says that there are some."""
    if fields.get("bias", "none") == "none":
        return {}
    saved = whole_modules(fields)
    names = {key: key.removeprefix(PREFIX) for key in tensors if key.startswith(PREFIX) and key.endswith(ENDING)}
    found = {key: tensors.pop(key) for key, name in names.items() if not _saved_whole(name, saved)}
    for key, tensor in found.items():
        if tensor.dtype not in _DTYPES:
            refuse(f"{WEIGHTS_FILE}: tensor {key!r} is {tensor.dtype}; float32, float16 and bfloat16 are read")
    return {bias_name(names[key]): tensor.float() for key, tensor in found.items()}


def _factor(name: str) -> tuple[int | None, str]:
    """Whether a tensor is an A (0) or a B (1), and what of its name says so."""
    found = ((i, ending) for pair in ENDINGS for i, ending in enumerate(pair) if name.endswith(ending))
    return next(found, (None, ""))


def _magnitudes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take DoRA's magnitudes out of the tensors: module name to ``[d_out]``."""
    keys = [key for key in tensors if key.startswith(PREFIX) and key.endswith(MAGNITUDE)]
    found = {key: tensors.pop(key) for key in keys}
    for key, tensor in found.items():
        if tensor.dtype not in _DTYPES:
            refuse(f"{WEIGHTS_FILE}: tensor {key!r} is {tensor.dtype}; float32, float16 and bfloat16 are read")
    return {key.removeprefix(PREFIX).removesuffix(MAGNITUDE): _still(tensor) for key, tensor in found.items()}


def _still(magnitude: Tensor) -> Tensor:
    """``[d_out]`` in float32, of a convolution's too, which has the dimensions of an answer."""
    lies_flat = magnitude.dim() > 2 and magnitude.numel() == magnitude.shape[1]
    return (magnitude.flatten() if lies_flat else magnitude).float()


def _check_magnitudes(fields: Mapping[str, Any], magnitude: Mapping[str, Tensor], B: Mapping[str, Tensor]) -> None:
    for module in sorted(B.keys() - magnitude.keys()):
        refuse_field(fields, "use_dora", f"is on, and {module!r} has no {MAGNITUDE[1:]}")
    for module in sorted(magnitude.keys() - B.keys()):
        refuse(f"{WEIGHTS_FILE}: {module!r} has a {MAGNITUDE[1:]} and no LoRA factors")
    for module, m in magnitude.items():
        if m.shape != (len(B[module]),):
            refuse(
                f"{WEIGHTS_FILE}: the {MAGNITUDE[1:]} of {module!r} has the shape {list(m.shape)}, "
                f"not [{len(B[module])}], one for each row of its weight"
            )


def _saved_whole(name: str, saved: tuple[str, ...]) -> bool:
    """Whether a tensor is in a module that PEFT saves: one whose name ends so, DistilBERT's ``pre_classifier`` too."""
    parts = name.split(".")
    return any(".".join(parts[:stop]).endswith(saved) for stop in range(1, len(parts)))


def _check_pairs(A: Mapping[str, Tensor], B: Mapping[str, Tensor], targets: Targets) -> None:
    if not A:
        refuse(f"{WEIGHTS_FILE}: it holds no LoRA factors")
    for module in sorted(A.keys() ^ B.keys()):
        refuse(f"{WEIGHTS_FILE}: {module!r} has only one of lora_A and lora_B")
    for module, a in A.items():
        b = B[module]
        if not _are_factors(a, b, stacked=targets.wraps(module)):
            refuse(
                f"{WEIGHTS_FILE}: the factors of {module!r} have the shapes {list(a.shape)} and {list(b.shape)}, "
                f"not [r, d_in] and [d_out, r] with r from 1 to {MAX_RANK}"
            )


def _are_factors(a: Tensor, b: Tensor, *, stacked: bool) -> bool:
    """Matrices, or the kernels of a convolution: as wide as the base's, and 1 wide with a part of r for each group.

    Those of all experts of a parameter have r rows for each; how many that is, the base tells (`with_experts`).
    """
    if a.dim() != b.dim() or not 2 <= a.dim() <= 5 or not a.numel() or not b.numel():
        return False
    if not stacked and len(a) > MAX_RANK:
        return False
    if a.dim() == 2:
        return a.shape[0] == b.shape[1]
    groups, rest = divmod(len(a), b.shape[1])
    return rest == 0 and len(b) % groups == 0 and all(k == 1 for k in b.shape[2:])


def _check_trained(A: Mapping[str, Tensor], B: Mapping[str, Tensor]) -> None:
    if not any(bool(a.any()) and bool(B[module].any()) for module, a in A.items()):
        refuse(f"{WEIGHTS_FILE}: every delta weight is zero: the adapter was never trained and changes nothing")
