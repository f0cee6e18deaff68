"""A training step of a large language model after T earlier tasks, against plain PEFT LoRA with none.

A step is 4k or 16k tokens, in micro-batches of 4k, then AdamW. Both forms go through transformers' ``training_step``
and compute logits for the answers alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from benchmarks.device import (
    adapters,
    clock,
    linear_modules,
    peak_memory,
    peft_twin,
    prompts,
    random_model,
    sizes,
    twin,
)
from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import DROPOUT
from benchmarks.training import olora_trainer, trainer_step
from lorabank.models.tasks.causal_lm import CausalLM
from lorabank.models.tasks.seq2seq_lm import Seq2SeqLM

BAR = 1.05
ANSWER = 8
"""Labelled tokens of a row, at most."""


def measure(device: str, shape: str) -> list[Result]:
    """Every number of tokens and of earlier tasks; the penalty is that of O-LoRA."""
    work, model = sizes(shape), random_model(shape, device)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        on_cpu = device == "cpu"
        arguments = TrainingArguments(output_dir=folder, use_cpu=on_cpu, bf16=not on_cpu, report_to="none")
        plain = _Plain(model=peft_twin(model, 1, DROPOUT), args=arguments)
        for earlier in work.earlier:
            own = twin(model)  # the past goes into weights that the forms share: what they are does not matter
            ours = olora_trainer(own, linear_modules(own), adapters(model, earlier), _loss(own), arguments)
            for tokens in work.tokens:
                micro = min(tokens, work.tokens[0]) // work.row
                batches = [_batch(model, micro, work.row)] * (tokens // (micro * work.row))
                forms = {"peft": trainer_step(plain, *batches), "olora": trainer_step(ours, *batches)}
                peaks = {name: _peak(form, device) for name, form in forms.items()}
                seen = compare(forms, baseline="peft", rounds=work.rounds, clock=clock(device))
                what = f"O-LoRA step of {tokens} tokens, {shape}, all linear layers, T = {earlier}, against PEFT LoRA"
                result = from_comparison("gpu_step", what, seen["olora"], BAR)
                results.append(replace(result, floor=1.0, detail=result.detail | {"memory": peaks}))
            del own, ours
    return results


def _peak(form: Callable[[], Any], device: str) -> dict[str, int]:
    form()
    with peak_memory(device) as seen:
        form()
    return seen


def _loss(model: PreTrainedModel) -> Callable[[nn.Module, dict[str, Tensor]], Tensor]:
    return Seq2SeqLM().loss if model.config.is_encoder_decoder else CausalLM().loss


class _Plain(Trainer):
    """Plain transformers with the same loss."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        base = self.model.get_base_model()  # its layers are PEFT's; PEFT's own forward hides what a model takes
        return _loss(base)(base, inputs)


def _batch(model: PreTrainedModel, rows: int, tokens: int) -> dict[str, Tensor]:
    """Answers of a few tokens behind prompts; for an encoder-decoder beside them."""
    inputs = prompts(model, rows, tokens)
    return inputs | {"labels": inputs["input_ids"][:, -min(ANSWER, tokens) :]}
