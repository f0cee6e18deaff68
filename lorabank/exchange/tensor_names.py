"""Names of a stranger's tensors, freed of what wrappers of the model leave in them.

torch.compile, FSDP, activation checkpointing and DistributedDataParallel put themselves into the names of all modules
beneath, a raw ``state_dict`` keeps the name of PEFT's adapter and beside a head the one that it replaced, and a model
that was wrapped twice has PEFT's prefix twice. None of it says which module is meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lorabank.exchange.config_fields import refuse
from lorabank.exchange.peft_folder import WEIGHTS_FILE
from lorabank.exchange.stored_factors import PREFIX

_WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
_PARALLEL = "module."
_ADAPTER = re.compile(
    r"(\.lora(?:new)?_[AB])\.([\w-]+)(?=\.weight$)|(\.lora_magnitude_vector)\.([\w-]+)\.weight$"
    r"|(\.modules_to_save)(?:\.([\w-]+))?(?=\.)|(\.lora_embedding_[AB])\.([\w-]+)$"
)
_SAVED = ".modules_to_save"
_REPLACED = ".original_module."


def plain_keys(tensors: Mapping[str, Tensor], file: str = WEIGHTS_FILE) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors by the names that PEFT saves, and what was taken out of their names.

    Args:
        tensors: By the names in the file.
        file: Its name, for messages.

    Raises:
        DataError: Two different tensors get one name, or they belong to several adapters.
    """
    bare = not any(PREFIX in key for key in tensors)
    found: dict[str, Tensor] = {}
    taken: dict[str, None] = {}
    adapters: set[str] = set()
    saved: set[str] = set()
    for key, tensor in tensors.items():
        if _REPLACED in key:
            taken[_REPLACED[1:]] = None
            continue
        name = _plain(key, bare, taken, adapters)
        if name in found:
            if (_SAVED in key or name in saved) and torch.equal(found[name], tensor):
                continue  # PEFT saves the bias of a head under both names
            refuse(f"{file}: two tensors are named {name[:200]!r} after the prefixes of wrappers are removed")
        found[name] = tensor
        if _SAVED in key:
            saved.add(name)
    if len(adapters) > 1:
        refuse(
            f"{file}: it holds the tensors of {len(adapters)} adapters: {', '.join(sorted(adapters))[:200]}",
            hint="save one of them: model.save_pretrained(FOLDER, selected_adapters=[NAME])",
        )
    return found, tuple(taken)


def _plain(key: str, bare: bool, taken: dict[str, None], adapters: set[str]) -> str:
    parts = key.split(".")
    taken.update((f"{part}.", None) for part in parts if part in _WRAPPERS)
    name = ".".join(part for part in parts if part not in _WRAPPERS)
    for parallel, without_it in ((_PARALLEL + PREFIX, PREFIX), (PREFIX + _PARALLEL, PREFIX)):
        if name.startswith(parallel):
            taken[_PARALLEL] = None
            name = without_it + name.removeprefix(parallel)
    while name.startswith(PREFIX + PREFIX):
        taken[f"a second {PREFIX}"] = None
        name = name.removeprefix(PREFIX)
    if bare:
        name = PREFIX + name
        taken[f"no {PREFIX}"] = None

    def without(match: re.Match[str]) -> str:
        kept = match[1] or match[3] or match[7] or ""
        adapter = match[2] or match[4] or match[6] or match[8]
        if adapter:
            adapters.add(adapter)
        taken[f".{adapter}" if kept else match[0][1:]] = None
        return kept

    return _ADAPTER.sub(without, name)
