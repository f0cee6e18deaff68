"""What servers that load PEFT folders refuse or compute wrong, read from the folder before one is started.

Each judge follows the source of its server: vLLM 0.33 (vllm/lora/peft_helper.py, vllm/config/lora.py), SGLang 0.5.23
(sglang/srt/lora/lora.py, mem_pool.py) and LoRAX 0.12 (lorax_server/adapters/lora.py). Whether a server serves the base
model with LoRA at all is not looked at.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any, NamedTuple

from lorabank.algebra.factors import lora_scaling
from lorabank.core.files.safetensors_header import judge_header
from lorabank.exchange.peft_folder import CONFIG_FILE, WEIGHTS_FILE
from lorabank.exchange.stored_factors import PREFIX, by_pattern

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_VLLM_HEADS = ("classifier", "score")
_LAYER = re.compile(r"(.*\.)(\d+)(\..*)\.lora_A\.weight")


@dataclass(frozen=True)
class Served:
    """A PEFT folder that lorabank wrote, and where it lies.

    Attributes:
        name: What requests call the adapter.
        folder: Its absolute path.
        files: File name to content; PEFT's two files.
        revision: Commit of a base model on the hub.
    """

    name: str
    folder: str
    files: Mapping[str, bytes]
    revision: str | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """``adapter_config.json``."""
        found: dict[str, Any] = json.loads(self.files[CONFIG_FILE])
        return found

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name, without PEFT's prefix, to its shape."""
        tensors = judge_header(BytesIO(self.files[WEIGHTS_FILE]), WEIGHTS_FILE)
        return {tensor.name.removeprefix(PREFIX): tensor.shape for tensor in tensors}

    @property
    def base(self) -> str:
        """What the server loads the base model by."""
        return str(self.config["base_model_name_or_path"])

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of ``rank_pattern``'s modules and, under ``""``, of all others."""
        return {"": self.config["r"], **(self.config.get("rank_pattern") or {})}

    @property
    def sums_to_factors(self) -> bool:
        """Whether a sum of this adapter alone is factors and nothing else."""
        return not self.config.get("use_dora") and self.config.get("bias", "none") == "none"

    def scalings(self) -> Iterator[tuple[str, float]]:
        """What PEFT multiplies by on the modules that a pattern names."""
        config = self.config
        ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
        for module in sorted({*ranks, *alphas}):
            yield (
                module,
                lora_scaling(
                    int(by_pattern(ranks, module, config["r"])),
                    by_pattern(alphas, module, config["lora_alpha"]),
                    use_rslora=bool(config.get("use_rslora")),
                ),
            )


class Verdict(NamedTuple):
    """What a server makes of an adapter.

    Attributes:
        problems: Why it would refuse it, or compute something else; empty when it takes it.
        command: What starts the server with it.
    """

    problems: tuple[str, ...]
    command: tuple[str, ...]


def judge_vllm(served: Served) -> Verdict:
    """vLLM: rank at most 512, no bias and no DoRA; of whole modules a classifier's head of one linear layer."""
    config, problems = served.config, _everywhere(served.config)
    heads = config.get("modules_to_save") or ()
    if other := [name for name in heads if name not in _VLLM_HEADS]:
        problems.append(f"modules_to_save ({', '.join(other)}): of whole modules it takes {' or '.join(_VLLM_HEADS)}")
    parts = {name.rpartition(".")[0] for name in served.shapes if name.startswith(tuple(f"{h}." for h in heads))}
    if not other and (deep := sorted(parts.difference(heads))):
        problems.append(f"the head ({', '.join(deep)}): it takes one of a single linear layer")
    rank = max(served.ranks.values())
    if rank > _VLLM_RANKS[-1]:
        problems.append(f"rank {rank}: it takes at most {_VLLM_RANKS[-1]}")
    needed = next((limit for limit in _VLLM_RANKS if limit >= rank), _VLLM_RANKS[-1])
    command = ["vllm", "serve", served.base, *_revision(served)]
    if heads:
        labels = max((shape[0] for name, shape in served.shapes.items() if name.startswith(tuple(heads))), default=2)
        command += ["--runner", "pooling", "--convert", "classify", "--max-lora-cls-labels", str(labels)]
    command += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(needed)]
    return Verdict(tuple(problems), (*command, "--lora-modules", f"{served.name}={served.folder}"))


def judge_sglang(served: Served) -> Verdict:
    """SGLang: factors alone, of one rank, multiplied by ``lora_alpha / r``, whatever rsLoRA and patterns say."""
    config, problems = served.config, [*_everywhere(served.config), *_heads(served.config)]
    if config.get("use_rslora") and config["r"] != 1:
        problems.append("use_rslora: it would multiply by lora_alpha / r")
    problems += _ranks(served) or _scalings(served, lora_scaling(config["r"], config["lora_alpha"], use_rslora=False))
    command = ["python", "-m", "sglang.launch_server", "--model-path", served.base, *_revision(served)]
    command += ["--enable-lora", "--max-loras-per-batch", "1", "--lora-paths", f"{served.name}={served.folder}"]
    return Verdict(tuple(problems), tuple(command))


def judge_lorax(served: Served) -> Verdict:
    """LoRAX: factors alone, of one rank and scaling; it drops a projection that some layer has no factors for.

    Its kernels want a rank of 8 or a multiple of 16. It pads others, and scales all projections but the first by the
    padded rank.
    """
    config, problems = served.config, [*_everywhere(served.config), *_heads(served.config)]
    scaling = lora_scaling(config["r"], config["lora_alpha"], use_rslora=bool(config.get("use_rslora")))
    problems += _ranks(served) or _scalings(served, scaling)
    layers = defaultdict[tuple[str, str], set[int]](set)
    for name in served.shapes:
        if found := _LAYER.fullmatch(name):
            layers[found[1], found[3]].add(int(found[2]))
    count = 1 + max((max(numbers) for numbers in layers.values()), default=0)
    if partial := sorted(module[1:] for (_, module), numbers in layers.items() if len(numbers) < count):
        problems.append(f"layers: not all of the {count} have factors for {partial[0]}, which it would drop")
    padded = 8 if config["r"] <= 8 else -16 * (-config["r"] // 16)
    if padded != config["r"] and len(layers) > 1:
        problems.append(f"rank {config['r']}: it would scale by the rank {padded} that it pads to")
    command = ("lorax-launcher", "--model-id", served.base, *_revision(served))
    return Verdict(tuple(problems), (*command, "--adapter-id", served.folder, "--adapter-source", "local"))


def _everywhere(config: Mapping[str, Any]) -> list[str]:
    """What no server takes."""
    problems = []
    if config.get("bias", "none") != "none":
        problems.append(f"bias {config['bias']!r}: it takes none")
    if config.get("use_dora"):
        problems.append("use_dora: it does not compute DoRA")
    if named := config.get("target_parameters"):
        problems.append(f"target_parameters ({named[0]}): it takes factors on modules")
    return problems


def _heads(config: Mapping[str, Any]) -> list[str]:
    saved = config.get("modules_to_save")
    return [f"modules_to_save ({', '.join(saved)}): it takes only LoRA factors"] if saved else []


def _ranks(served: Served) -> list[str]:
    other = {module: rank for module, rank in served.ranks.items() if rank != served.config["r"]}
    return [f"rank_pattern: rank {rank} of {module!r} beside {served.config['r']}" for module, rank in other.items()][
        :1
    ]


def _scalings(served: Served, scaling: float) -> list[str]:
    """The first module that would be multiplied by another number than PEFT's."""
    return [
        f"patterns: it would scale {module!r} by {scaling:g} instead of {own:g}"
        for module, own in served.scalings()
        if abs(own - scaling) > 1e-6 * abs(scaling)
    ][:1]


def _revision(served: Served) -> tuple[str, ...]:
    return () if served.revision is None else ("--revision", served.revision)


SERVERS: dict[str, Callable[[Served], Verdict]] = {"vllm": judge_vllm, "sglang": judge_sglang, "lorax": judge_lorax}
"""Name to judge; a new server is one function and one line."""
