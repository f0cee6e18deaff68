"""Where the factors of a module are in a PEFT folder: the names that PEFT gives tensors, and the matrices in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from lorabank.algebra.biases import ENDING
from lorabank.core.errors import DataError
from lorabank.models.bases.kinds.attention import INPUTS, OUTPUT

ENDINGS = ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"))
"""What PEFT puts behind a module's name for its factors: of most modules, and of embeddings."""
PREFIX = "base_model.model."
"""What PEFT puts before the name of every tensor."""
INNER = ".base_layer"
"""What PEFT puts behind a module's name for a parameter that it has wrapped before another one of the module."""
OF_ATTENTION = f"{INNER}.{OUTPUT}"
"""What PEFT puts behind the name of torch's attention for its output projection."""
MAGNITUDE = ".lora_magnitude_vector"
"""What PEFT puts behind a module's name for DoRA's magnitudes ``[d_out]``."""


class Shaped(Protocol):
    """A tensor, or what a header says of one."""

    @property
    def shape(self) -> Sequence[int]:
        """Its dimensions."""


@dataclass(frozen=True)
class StoredFactors:
    """Where the factors of a module are.

    Attributes:
        a: Key of its lora_A.
        b: Key of its lora_B.
        expert: Of a matrix of an expert its number; None for a module's own factors.
        experts: How many experts there are in the two tensors, A expert by expert and B rank by rank.
        block: Of query, key or value of torch's attention its number among the three blocks of the two tensors.
        rank: Rows of such a block of A that count; zeros follow them.
    """

    a: str
    b: str
    expert: int | None = None
    experts: int = 1
    block: int | None = None
    rank: int = 0

    @property
    def module(self) -> str:
        """The module as PEFT names it."""
        ending = next(ending for ending, _ in ENDINGS if self.a.endswith(ending))
        return self.a.removeprefix(PREFIX).removesuffix(ending)

    def parameter(self, module: str) -> str:
        """The parameter that PEFT adapts, of a module by the name that it has here."""
        return "weight" if self.expert is None else module.rpartition(".")[0].rpartition(".")[2]

    def A(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """``[r, d_in]``."""
        whole = matrix_A(tensors[self.a])
        if self.block is not None:
            return whole.chunk(len(INPUTS))[self.block][: self.rank]
        return whole if self.expert is None else whole.chunk(self.experts)[self.expert]

    def B(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """``[d_out, r]``."""
        whole = matrix_B(tensors[self.b], len(tensors[self.a]))
        if self.block is not None:
            return whole.chunk(len(INPUTS))[self.block].chunk(len(INPUTS), 1)[self.block][:, : self.rank]
        return whole if self.expert is None else whole.unflatten(1, (-1, self.experts))[..., self.expert]

    def sizes(self, rows: int, width: int) -> tuple[int, int]:
        """``(r, d_out)`` of what is stored in ``rows`` rows of A and ``width`` rows of B."""
        return (rows // self.experts, width) if self.block is None else (self.rank, width // len(INPUTS))


@dataclass(frozen=True)
class Keys:
    """Module to where its factors are and to the key of DoRA's magnitude; full name of the head's to its key.

    And the name of each bias to the key of what PEFT puts in its place.
    """

    factors: Mapping[str, StoredFactors]
    head: Mapping[str, str]
    magnitude: Mapping[str, str]
    bias: Mapping[str, str] = field(default_factory=dict)


def sorted_keys(where: object, keys: Mapping[str, Shaped], config: Mapping[str, Any] | None = None) -> Keys:
    """The names of an adapter's tensors by what they are.

    Args:
        where: Named in a message.
        keys: The names, with the tensors or what a header says of them.
        config: Of a folder that lorabank wrote: says which tensors are those of experts, and names these; without it
            the modules are as the file names them. Of a tuner of PEFT, which has no factors, the head alone is found.

    Raises:
        DataError: A key is neither a LoRA factor nor part of a saved module, or a factor lacks its partner.
    """
    if config and config.get("peft_type", "LORA") != "LORA":  # what is its own, PEFT alone can read
        return Keys({}, in_modules(keys, config.get("modules_to_save") or ()), {})
    A: dict[str, str] = {}
    B: dict[str, str] = {}
    head: dict[str, str] = {}
    magnitude: dict[str, str] = {}
    bias: dict[str, str] = {}
    whole = set(in_modules(keys, (config or {}).get("modules_to_save") or ()))
    biases = (config or {}).get("bias", "none") != "none"
    for key in keys:
        name = key.removeprefix(PREFIX)
        if name == key:
            raise DataError(f"{where}: tensor {key!r} is not part of an adapter")
        if ending := next((ending for ending, _ in ENDINGS if name.endswith(ending)), None):
            A[name.removesuffix(ending)] = key
        elif ending := next((ending for _, ending in ENDINGS if name.endswith(ending)), None):
            B[name.removesuffix(ending)] = key
        elif name.endswith(MAGNITUDE):
            magnitude[name.removesuffix(MAGNITUDE)] = key
        elif biases and name.endswith(ENDING) and name not in whole:
            bias[bias_name(name)] = key
        else:
            head[name] = key
    if A.keys() != B.keys():
        raise DataError(f"{where}: lora_A and lora_B do not cover the same modules")
    if magnitude and magnitude.keys() != A.keys():
        raise DataError(f"{where}: DoRA's magnitudes do not cover all modules")
    named = {module: StoredFactors(key, B[module]) for module, key in A.items()}
    if config:
        named = _of_attention(_of_experts(named, keys, config), config)
    return Keys(named, head, magnitude, bias)


def bias_name(name: str) -> str:
    """A bias by the name that it has in the base: behind what PEFT has wrapped, it says so."""
    return name.removesuffix(ENDING).removesuffix(INNER) + ENDING


def in_modules(keys: Iterable[str], modules: Sequence[str]) -> dict[str, str]:
    """The tensors of modules that are stored whole: full parameter name to key."""
    names = {key.removeprefix(PREFIX): key for key in keys}
    return {name: key for name, key in names.items() if name.startswith(tuple(f"{module}." for module in modules))}


def _of_experts(
    named: Mapping[str, StoredFactors], tensors: Mapping[str, Shaped], config: Mapping[str, Any]
) -> dict[str, StoredFactors]:
    """The modules, with each matrix of each expert in the place of the parameter that holds them all.

    PEFT wraps the parameters of one module around each other, each named by one ``base_layer`` more than the last one
    (`lorabank.exchange.layouts` writes them in this order).
    """
    experts = [name for name in config.get("target_parameters") or () if not name.endswith(".weight")]
    found = {}
    for module, own in named.items():
        stem = module
        while stem.endswith(INNER):
            stem = stem.removesuffix(INNER)
        parameters = [name for name in experts if name.rpartition(".")[0] == stem]
        if not parameters:
            found[module] = own
            continue
        parameter = parameters[-1 - module.removeprefix(stem).count(INNER)]
        r = int(by_pattern(config.get("rank_pattern") or {}, parameter, config["r"]))
        count = tensors[own.a].shape[0] // r
        found |= {f"{parameter}.{e}": StoredFactors(own.a, own.b, e, count) for e in range(count)}
    return found


def _of_attention(named: Mapping[str, StoredFactors], config: Mapping[str, Any]) -> dict[str, StoredFactors]:
    """The modules, with query, key and value of torch's attention in the place of what PEFT has for all of them.

    Which of them there are, and their ranks, is in ``rank_pattern`` (`lorabank.exchange.attention_layout`), and the
    output's factors are 0.
    """
    ranks = config.get("rank_pattern") or {}
    stems = {name.removesuffix(OF_ATTENTION) for name in named if name.endswith(OF_ATTENTION)}
    found: dict[str, StoredFactors] = {}
    for module, own in named.items():
        if module in stems:
            named_ranks = [(block, f"{module}.{part}") for block, part in enumerate(INPUTS)]
            found |= {
                name: StoredFactors(own.a, own.b, block=block, rank=int(ranks[name]))
                for block, name in named_ranks
                if name in ranks
            }
        elif module.removesuffix(OF_ATTENTION) not in stems:
            found[module] = own
    return found


def matrix_A(stored: Tensor) -> Tensor:
    """``A [r, d_in]`` of what PEFT stores: a matrix, or the kernel of a convolution."""
    return stored.flatten(1)


def matrix_B(stored: Tensor, r: int) -> Tensor:
    """``B [d_out, r]`` of what PEFT stores: a matrix, or a kernel, each group of which reads its part of r."""
    flat = stored.flatten(1)
    return flat if flat.shape[1] in (0, r) else torch.block_diag(*flat.chunk(r // flat.shape[1]))


def by_pattern(pattern: Mapping[str, float], module: str, default: float) -> float:
    """PEFT's rule for literal names: the first key that equals the module or ends it after a dot counts."""
    return next((value for key, value in pattern.items() if f".{module}".endswith(f".{key}")), default)
