"""Text to text in small: banks on tiny language models, and what plain PEFT says to the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import InitConfig, TrainConfig
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.mixing.runtime import Plan
from lorabank.workflows.assemble import RuntimeSettings, load_runtime
from tests.unit.workflows.conftest import write_rows

KINDS = ("llama", "t5")
TASK_TYPES = {"llama": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}
PROMPTS = ("a b c", "x y z z\nOption: no, yes\nAnswer:", "m", "q w e r t y u i")
TEMPLATE = "{text} is {labels}:"
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def add(bank: Path, base: Path, name: str, labels: Sequence[str], seed: int, **config: Any) -> None:
    """A task of labelled letters, with a prompt of its own."""
    data = write_rows(bank.parent / f"{bank.name}-{name}.jsonl", labels, seed=seed)
    common: dict[str, Any] = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-2, "device": "cpu"}
    common |= {"set": (f"prompt_template={TEMPLATE}",)}
    api.add_task(bank, name, TrainConfig(**({"data": str(data)} | common | config)), init=InitConfig(base=str(base)))


def fill_language_bank(bank: Path, base: Path) -> Path:
    """`first` on every linear module, r 2, and on top of it `second` on the query and value projections, r 3."""
    add(bank, base, "first", ("no", "yes"), 0, r=2, target_modules="all-linear", lora_alpha=4.0)
    add(bank, base, "second", ("one", "three", "two"), 1, r=3, lora_alpha=6.0, use_rslora=True)
    return bank


def own_state(bank: Path, task: str) -> dict[str, float]:
    """The adapters that answer a task together."""
    adapter = Bank.open(bank).snapshot().adapter_of(task)
    return dict.fromkeys((*adapter.context, adapter.digest), 1.0)


def bank_logits(bank: Path, state: Mapping[str, float]) -> list[torch.Tensor]:
    """What lorabank's model says to PROMPTS with adapters by digest, ``[tokens, vocabulary]`` each."""
    opened = Bank.open(bank)
    snapshot = opened.snapshot()
    settings = RuntimeSettings(device="cpu", dtype="float32", batch_size=4)
    runtime = load_runtime(opened, snapshot, OpenBase(snapshot.base), settings)
    weights = np.array([state.get(name, 0.0) for name in runtime.stack.names], np.float32)
    assert np.count_nonzero(weights) == len(state)
    runtime.enter(Plan(weights=weights))
    return _logits(runtime.base.model, runtime.base.tokenizer)


def peft_logits(base: Path, folder: Path | None) -> list[torch.Tensor]:
    """The same from plain PEFT; without a folder no adapter."""
    from transformers import AutoTokenizer

    return _logits(plain_model(base, folder), AutoTokenizer.from_pretrained(base))


def plain_model(base: Path, folder: Path | None) -> Any:
    """A plain transformers model, under a PEFT folder if there is one."""
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    encoder_decoder = AutoConfig.from_pretrained(base).is_encoder_decoder
    model = (AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM).from_pretrained(base)
    return (PeftModel.from_pretrained(model, folder) if folder else model).eval()


def label_scores(model: Any, tokenizer: Any, prompt: str, labels: Sequence[str]) -> list[float]:
    """Log-likelihood of each label with its end token behind a prompt; one plain pass for each."""
    asked = tokenizer(prompt)["input_ids"]
    scores = []
    for label in labels:
        with torch.inference_mode():
            if model.config.is_encoder_decoder:
                ids = [*tokenizer(label, add_special_tokens=False)["input_ids"], 2]
                logits = model(input_ids=torch.tensor([asked]), labels=torch.tensor([ids])).logits[0]
            else:
                ids = [*tokenizer(f" {label}", add_special_tokens=False)["input_ids"], 2]
                logits = model(input_ids=torch.tensor([[*asked, *ids]])).logits[0, len(asked) - 1 : -1]
        scores.append(float(logits.log_softmax(-1)[range(len(ids)), ids].sum()))
    return scores


def _logits(model: Any, tokenizer: Any) -> list[torch.Tensor]:
    decoder = {"decoder_input_ids": torch.tensor([[1, 9, 8, 7]])} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        return [
            model.eval()(input_ids=torch.tensor([tokenizer(prompt)["input_ids"]]), **decoder).logits[0]
            for prompt in PROMPTS
        ]
