"""Log-likelihoods of continuations, against one plain forward pass each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorabank.core.errors import DataError
from lorabank.models.answering.continuations import continuation_log_likelihoods

PAIRS = (([1, 5, 9], [7, 8]), ([1], [30, 31, 32, 33]), ([1, 5, 9, 40, 41, 42], [9]), ([1, 2], []))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_they_are_those_of_plain_passes(make_language_model, batch_size: int) -> None:
    folder = make_language_model("llama")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    prompts, continuations = [list(one) for one, _ in PAIRS], [list(more) for _, more in PAIRS]
    with torch.no_grad():  # the likeliest continuation of a prompt is greedy
        for _ in range(3):
            ids = torch.tensor([[*prompts[0], *continuations[-1]]])
            continuations[-1] = [*continuations[-1], int(model(input_ids=ids).logits[0, -1].argmax())]
    prompts[-1] = list(prompts[0])
    continuations.append([])
    prompts.append([1])
    entered: list[int] = []
    sums, greedy = continuation_log_likelihoods(
        model, tokenizer, prompts, continuations, batch_size=batch_size, enter=entered.extend
    )
    assert sorted(entered) == [0, 1, 2, 3]
    assert greedy.tolist() == [False, False, False, True, True]
    assert sums[4] == 0
    for found, prompt, more in zip(sums[:4], prompts, continuations, strict=False):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + more])).logits[0, len(prompt) - 1 : -1].double()
        assert found == pytest.approx(float(logits.log_softmax(-1)[range(len(more)), more].sum()), abs=1e-4)
    assert sums.dtype == np.float64


def test_nothing_is_behind_an_empty_prompt(make_language_model) -> None:
    folder = make_language_model("llama")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with pytest.raises(DataError, match="prompt of row 1 has no tokens"):
        continuation_log_likelihoods(model, tokenizer, [[]], [[1]], batch_size=2, enter=lambda rows: None)
