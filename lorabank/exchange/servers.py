"""What servers that load PEFT folders refuse, read from the folder's config before one is started."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lorabank.algebra.factors import lora_scaling
from lorabank.exchange.peft_folder import CONFIG_FILE
from lorabank.exchange.stored_factors import by_pattern

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


class Verdict(NamedTuple):
    """What a server makes of an adapter.

    Attributes:
        problems: Why it would refuse it, or compute something else; empty when it takes it.
        needs: What the server must be started with.
    """

    problems: tuple[str, ...]
    needs: str


def judge_vllm(files: Mapping[str, bytes]) -> Verdict:
    """vLLM: LoRA factors alone, rank at most 512, and one scaling for all modules, from ``r`` and ``lora_alpha``.

    It does not know ``rank_pattern`` and ``alpha_pattern``: ranks that differ fit, scalings that differ are computed
    wrong without a word. Whether it serves the base model with LoRA at all is not looked at.
    Source: vllm/lora/peft_helper.py and vllm/config/lora.py.

    Args:
        files: File name to content of a PEFT folder that lorabank wrote.
    """
    config = json.loads(files[CONFIG_FILE])
    problems = []
    if saved := config.get("modules_to_save"):
        problems.append(f"modules_to_save ({', '.join(saved)}): it takes only LoRA factors")
    if config.get("bias", "none") != "none":
        problems.append(f"bias {config['bias']!r}: it takes none")
    if config.get("use_dora"):
        problems.append("use_dora: it knows no DoRA")
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    rank = max(config["r"], *ranks.values(), 0)
    if rank > _VLLM_RANKS[-1]:
        problems.append(f"rank {rank}: it takes at most {_VLLM_RANKS[-1]}")
    rslora = bool(config.get("use_rslora"))
    scaling = lora_scaling(config["r"], config["lora_alpha"], use_rslora=rslora)
    for module in sorted({*ranks, *alphas}):
        own = lora_scaling(
            int(by_pattern(ranks, module, config["r"])),
            by_pattern(alphas, module, config["lora_alpha"]),
            use_rslora=rslora,
        )
        if abs(own - scaling) > 1e-6 * scaling:
            problems.append(f"patterns: it would scale {module!r} by {scaling:g} instead of {own:g}")
            break
    needed = next((limit for limit in _VLLM_RANKS if limit >= rank), _VLLM_RANKS[-1])
    return Verdict(tuple(problems), f"--max-lora-rank {needed}")


SERVERS: dict[str, Callable[[Mapping[str, bytes]], Verdict]] = {"vllm": judge_vllm}
"""Name to judge; a new server is one function and one line."""
