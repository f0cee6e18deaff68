"""Greedy decoding with 15 adapters: merged, and another adapter for each sample, against the base and against PEFT.

The same number of tokens for every batch size, through ``generate`` of transformers, whose own cost per token is in
all forms. PEFT's mixed batches are ``adapter_names``. A batch of prompts alone shows the same without the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.device import adapters, clock, peak_memory, peft_twin, prompts, random_model, sizes, twin
from benchmarks.harness import Result, compare, from_comparison
from lorabank.models.mixing.mixture import Mixture

MERGED_BAR, DECODE_BAR, PASS_BAR = 1.03, 1.25, 1.15
ROUNDS, PEFT_ROUNDS = 3, 2
"""At most: a call decodes many tokens, and PEFT's mixed batches take seconds for each."""


@torch.inference_mode()
def measure(device: str, shape: str, folder: Path) -> list[Result]:
    """Every batch size, first decoding, then one pass over the prompts."""
    work, model = sizes(shape), random_model(shape, device)
    count = work.adapters[0]
    merged, mixed, peft = twin(model), twin(model), peft_twin(model, count).eval()
    Mixture(merged, adapters(model, count)).merge(torch.full((count,), 0.5))
    mixture = Mixture(mixed, adapters(model, count))
    results = []
    for rows in work.batches:
        mixture.per_sample(torch.eye(count)[torch.arange(rows) % count])
        names = [str(row % count) for row in range(rows)]
        forms = {"base": model, "merged": merged, "mixed": mixed}
        inputs = prompts(model, rows, work.row)
        for doing, form_of, bar in (("decode", _decode, DECODE_BAR), ("one pass", _pass, PASS_BAR)):
            calls = {name: form_of(form, inputs, work.new_tokens) for name, form in forms.items()}
            with peak_memory(device) as memory:
                seen = compare(calls, baseline="base", rounds=min(ROUNDS, work.rounds), warmup=1, clock=clock(device))
                usual = {"base": calls["base"], "peft": form_of(_named(peft, names), inputs, work.new_tokens)}
                seen |= compare(usual, baseline="base", rounds=PEFT_ROUNDS, warmup=0, clock=clock(device))
            what = f"{doing}, {shape}, batch {rows}, {count} adapters"
            for form, how, limit in (("merged", "merged", MERGED_BAR), ("mixed", "one a sample", bar)):
                result = from_comparison("gpu_decode", f"{what} {how}, against the base", seen[form], limit)
                peer = seen["peft"].ratio if form == "mixed" else None
                results.append(replace(result, peer=peer, floor=1.0, detail=result.detail | memory))
    return results


class _named:
    """PEFT with the adapter of each sample; looks like a model to the two calls below."""

    def __init__(self, model: PeftModel, names: list[str]) -> None:
        self.config = model.get_base_model().config
        self._model = model
        self._names = names

    def __call__(self, **inputs: Any) -> Any:
        return self._model(**inputs, adapter_names=self._names)

    def generate(self, **inputs: Any) -> Any:
        return self._model.generate(**inputs, adapter_names=self._names)


def _decode(form: PreTrainedModel | _named, inputs: dict[str, Tensor], new: int) -> Callable[[], Any]:
    length = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    return lambda: form.generate(**inputs, **length)


def _pass(form: PreTrainedModel | _named, inputs: dict[str, Tensor], new: int) -> Callable[[], Any]:
    decoder = {"decoder_input_ids": inputs["input_ids"][:, :1]} if form.config.is_encoder_decoder else {}
    return lambda: form(**inputs, **decoder, use_cache=False)
