"""Tiny random base models of five architectures, with a tokenizer, made on the fly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

KINDS = ("bert", "roberta", "distilbert", "llama", "gpt_neox")
WORDS = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
WIDTH = 32

MakeBase = Callable[..., Path]


def make_config(kind: str, **changes: object) -> PreTrainedConfig:
    sizes = {
        "vocab_size": 40,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 66,
        "pad_token_id": 1,
    }
    if kind == "distilbert":
        names = {
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
        }
        sizes = {names.get(key, key): value for key, value in sizes.items()}
    classes = {
        "bert": transformers.BertConfig,
        "roberta": transformers.RobertaConfig,
        "distilbert": transformers.DistilBertConfig,
        "llama": transformers.LlamaConfig,
        "gpt_neox": transformers.GPTNeoXConfig,
    }
    if kind in ("llama", "gpt_neox"):
        sizes |= {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 2}
    # Wide initial weights: with the usual 0.02 all texts would have nearly the same features and logits.
    return classes[kind](**(sizes | {"initializer_range": 0.3} | changes))


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """One token per letter; encoders get <s> and </s>, decoders bring no pad token and add nothing."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if kind not in ("llama", "gpt_neox"):
        special["pad_token"] = "<pad>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture
def make_base(tmp_path: Path) -> MakeBase:
    """``make_base(kind, auto=AutoModel, name="base", **config)``: a saved model folder."""

    def make(kind: str, auto: type = transformers.AutoModel, name: str = "base", **changes: object) -> Path:
        folder = tmp_path / name
        torch.manual_seed(7)
        auto.from_config(make_config(kind, **changes)).save_pretrained(folder)
        make_tokenizer(kind).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)
