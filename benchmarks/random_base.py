"""A base model with random weights on disk, as a bank takes it: speed and memory do not depend on what weights are."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

WORDS = 2000
"""Words of the tokenizer, ``w0`` and so on, each one token."""
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def save_base(model: PreTrainedModel, folder: Path) -> Path:
    """Write a language model beside a tokenizer of words; the vocabulary of the model is larger than that of texts."""
    words = [*_SPECIAL, *(f"w{number}" for number in range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def texts(count: int, words: int, seed: int = 0) -> list[str]:
    """Random texts of so many words."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(WORDS, (count, words), generator=generator).tolist()
    return [" ".join(f"w{number}" for number in row) for row in drawn]
