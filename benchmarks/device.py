"""What the benchmarks of large language models share: their shapes with random weights, and a clock for a device.

Speed does not depend on what the weights are, so nothing is downloaded: a model is drawn on the device, in bfloat16 on
a GPU. Work on a GPU goes on when a call returns; the clock waits for it. Forms that are compared share the weights of
one base model, since two of 8B would not fit beside each other's activations.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    T5Config,
)

from benchmarks.models import ALPHA, RANK, random_stack
from benchmarks.random_base import save_base
from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.models.bases.loading import describe_base
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.bases.targets import find_targets


def _t5(**sizes: int) -> T5Config:
    return T5Config(**sizes, decoder_start_token_id=0)  # type: ignore[call-arg]


SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "t5-large": lambda: _t5(d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_heads=16, vocab_size=32128),
    "llama-1b": lambda: LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=True,
    ),
    "qwen2.5-7b": lambda: Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
    ),
    "llama-8b": lambda: LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    ),
    "tiny": lambda: LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=4915,
    ),
    "tiny-t5": lambda: _t5(d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, vocab_size=4915),
}
"""T5-large as O-LoRA used it, Llama 3.2 1B, Qwen2.5 7B, Llama 3.1 8B; and two that show that a part runs."""


@dataclass(frozen=True)
class Sizes:
    """How much work a part does: the numbers that count, or as little as shows that it runs."""

    tokens: int
    row: int
    steps: int
    earlier: tuple[int, ...]
    adapters: tuple[int, ...]
    batches: tuple[int, ...]
    new_tokens: int
    texts: int
    rounds: int


LARGE = Sizes(
    tokens=4096, row=512, steps=16, earlier=(1, 50), adapters=(15, 50), batches=(1, 8, 64), new_tokens=16, texts=256,
    rounds=7,
)  # fmt: skip
SMALL = Sizes(
    tokens=32, row=16, steps=3, earlier=(1, 2), adapters=(2,), batches=(1, 3), new_tokens=2, texts=8, rounds=2
)  # fmt: skip


def sizes(shape: str) -> Sizes:
    """The work for a shape."""
    return SMALL if shape.startswith("tiny") else LARGE


def random_model(shape: str, device: str) -> PreTrainedModel:
    """A language model of a shape, frozen and in eval mode, with weights drawn on the device."""
    torch.manual_seed(0)
    return _model(shape, device, dtype(device)).requires_grad_(False).eval()


def shell(shape: str) -> PreTrainedModel:
    """The same without memory for its weights."""
    return _model(shape, "meta", torch.float32)


def _model(shape: str, device: str, dtype: torch.dtype) -> PreTrainedModel:
    config = SHAPES[shape]()
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device(device):
        model: PreTrainedModel = auto.from_config(config, dtype=dtype)
    return model


def dtype(device: str) -> torch.dtype:
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """Modules of its own around the same weights."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)  # type: ignore[arg-type]


def linear_modules(model: PreTrainedModel) -> list[str]:
    """Every linear layer that PEFT adapts too."""
    return list(find_targets(model, "all-linear", ()).names)


def adapters(model: PreTrainedModel, count: int) -> AdapterStack:
    """Random adapters on all linear layers, where the model is and in its dtype."""
    return random_stack(model, linear_modules(model), count, dtype=model.dtype)


def peft_twin(model: PreTrainedModel, count: int, dropout: float = 0.0) -> PeftModel:
    """PEFT around the same weights, with as many adapters, named ``"0"``, ``"1"``, ..."""
    own = twin(model)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=linear_modules(model))
    wrapped = get_peft_model(own, config, adapter_name="0")
    for number in range(1, count):
        wrapped.add_adapter(str(number), config)
    return wrapped


def saved_base(shape: str, device: str, folder: Path) -> OpenBase:
    """The model of `random_model` with a tokenizer as a base on disk; written once for all parts in the folder."""
    path = folder / shape
    if not path.exists():
        unfinished = folder / f"{shape}.unfinished"
        save_base(random_model(shape, device), unfinished)
        unfinished.rename(path)
    return OpenBase(describe_base(resolve_base(str(path))))


def adapter_of(shapes: Mapping[str, tuple[int, int]]) -> LoraFactors:
    """A random adapter in float32 on the CPU, of modules of the shapes ``(d_out, d_in)``."""
    generator = torch.Generator().manual_seed(2)
    A = {name: torch.randn(RANK, d_in, generator=generator) / d_in**0.5 for name, (_, d_in) in shapes.items()}
    B = {name: torch.randn(d_out, RANK, generator=generator) * 1e-3 for name, (d_out, _) in shapes.items()}
    return LoraFactors(A, B, dict.fromkeys(shapes, ALPHA / RANK))


def prompts(model: PreTrainedModel, rows: int, tokens: int) -> dict[str, Tensor]:
    """Random token ids with nothing padded, on the model's device."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(20, 4900, (rows, tokens), generator=generator).to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def clock(device: str) -> Callable[[], float]:
    """Seconds of wall time after all work that was given to a GPU; of the process's CPU time without one."""
    if not device.startswith("cuda"):
        return time.process_time

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised


@contextmanager
def peak_memory(device: str) -> Iterator[dict[str, int]]:
    """Most bytes that tensors took on a GPU during a block, and at its beginning; nothing for a CPU."""
    seen: dict[str, int] = {}
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        seen["bytes_before"] = torch.cuda.memory_allocated(device)
    yield seen
    if seen:
        torch.cuda.synchronize(device)
        seen["peak_bytes"] = torch.cuda.max_memory_allocated(device)
