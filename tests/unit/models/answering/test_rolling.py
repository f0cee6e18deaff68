"""Answers in a batch that others join: each is what the model says to it alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, cache_utils

from lorabank.core.config import SamplingConfig
from lorabank.core.errors import DivergedError
from lorabank.models.answering import rolling
from lorabank.models.answering.generating import reads_on
from lorabank.models.answering.replies import GenerationRequest, Written
from lorabank.models.answering.rolling import CachedRows, Rolling, rolls
from tests.unit.models.answering.test_generating import drawn_by_hand

PROMPTS = [[5, 6, 7], [8] * 11, [9, 10], [11, 12, 13, 14, 15], [16] * 7, [17, 18]]


@pytest.fixture
def loaded(make_language_model: Callable[..., Path]) -> tuple[Any, Any]:
    base = make_language_model()
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = "<pad>"
    return AutoModelForCausalLM.from_pretrained(base).eval(), tokenizer


def alone(model: Any, prompt: list[int], tokens: int) -> list[int]:
    """What plain transformers generates, greedily and by itself."""
    config = transformers.GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=2, pad_token_id=1)
    ids = torch.tensor([prompt])
    return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[
        0, len(prompt) :
    ].tolist()


class Group:
    """A running batch, and what was said in it."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.tokenizer, self.said, self.entered = tokenizer, {}, []  # type: tuple[Any, dict[int, Written], list[Any]]
        self.rolling: Rolling[int] = Rolling(model, tokenizer, lambda keys: self.entered.append(list(keys)), lambda: 0)

    def join(self, numbers: list[int], **config: Any) -> None:
        settings = SamplingConfig(**({"max_new_tokens": 9} | config))
        requests = [GenerationRequest(settings, done=lambda one, i=i: self.said.update({i: one})) for i in numbers]
        with torch.inference_mode():
            self.rolling.join([PROMPTS[i] for i in numbers], requests, numbers)

    def step(self, count: int = 1) -> None:
        with torch.inference_mode():
            for _ in range(count):
                self.rolling.step()


def text(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode([i for i in ids if i != 2], skip_special_tokens=True)).strip()


def test_rows_that_join_late_get_the_tokens_that_they_get_alone(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    group = Group(model, tokenizer)
    group.join([0, 1])
    group.step(2)
    group.join([2], max_new_tokens=3)
    group.step()
    group.join([3, 4])
    group.step(4)
    group.join([5], max_new_tokens=14)
    while len(group.rolling):
        group.step()
    for i, prompt in enumerate(PROMPTS):
        expected = alone(model, prompt, {2: 3, 5: 14}.get(i, 9))
        assert group.said[i].text == text(tokenizer, expected)
        assert group.said[i].tokens == len([one for one in expected if one != 2])
        assert group.said[i].prompt_tokens == len(prompt)
    assert group.entered[:4] == [[0, 1], [0, 1], [0, 1], [2]]  # a pass for each token, and one for those that join
    assert len({one.text for one in group.said.values()}) > 3


def test_what_has_ended_is_given_back(loaded: tuple[Any, Any]) -> None:
    """Its row, and the columns that only it needed."""
    model, tokenizer = loaded
    group = Group(model, tokenizer)
    group.join([1], max_new_tokens=2)
    group.join([0], max_new_tokens=30, stop=())
    assert group.rolling.shape == (2, 11)
    group.step()
    assert group.rolling.shape == (1, 4)
    keys = group.rolling._cached._cache.layers[0].keys
    assert keys.shape[::2] == (1, 4)
    assert keys.untyped_storage().nbytes() == keys.nbytes
    while len(group.rolling):
        group.step()
    assert group.rolling.shape == (0, 0)
    assert group.rolling._cached._cache is None


def test_an_answer_that_is_ended_leaves_the_others_alone(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    group, over = Group(model, tokenizer), False
    group.join([0, 3], max_new_tokens=12)
    ended: list[Written] = []
    request = GenerationRequest(SamplingConfig(max_new_tokens=12), done=ended.append, over=lambda: over)
    with torch.inference_mode():
        group.rolling.join([PROMPTS[1]], [request], [1])
    group.step(3)
    over = True
    while len(group.rolling):
        group.step()
    expected = alone(model, PROMPTS[1], 12)
    assert (ended[0].finish, ended[0].text) == ("ended", text(tokenizer, expected[:5]))
    assert [group.said[i].text for i in (0, 3)] == [text(tokenizer, alone(model, PROMPTS[i], 12)) for i in (0, 3)]


def test_every_row_draws_as_it_does_elsewhere(loaded: tuple[Any, Any]) -> None:
    """Seed, temperature, nucleus and penalty are each request's own."""
    model, tokenizer = loaded
    settings = [
        SamplingConfig(max_new_tokens=8, temperature=1.2, seed=3),
        SamplingConfig(max_new_tokens=8, temperature=0.9, top_p=0.6, seed=4),
        SamplingConfig(max_new_tokens=8, temperature=0.7, repetition_penalty=1.7, seed=5),
    ]
    said: dict[int, str] = {}
    rows: Rolling[int] = Rolling(model, tokenizer, lambda keys: None, lambda: None)
    with torch.inference_mode():
        for i, one in enumerate(settings):
            request = GenerationRequest(one, done=lambda answer, i=i: said.update({i: answer.text}))
            rows.join([PROMPTS[i]], [request], [i])
            rows.step()
        while len(rows):
            rows.step()
    for i, one in enumerate(settings):
        assert said[i] == text(tokenizer, drawn_by_hand(model, PROMPTS[i], one))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox"])
def test_models_with_keys_and_values_alone_roll(make_language_model: Callable[..., Path], kind: str) -> None:
    assert rolls(AutoModelForCausalLM.from_pretrained(make_language_model(kind)).eval())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_rounding_of_a_short_dtype_is_no_leak(loaded: tuple[Any, Any], dtype: torch.dtype) -> None:
    model = loaded[0].to(dtype)
    assert rolls(model)
    assert reads_on(model)


SMALL = {"vocab_size": 272, "hidden_size": 32, "num_hidden_layers": 2}
OTHERS = {
    "a sliding window": transformers.MistralConfig(
        **SMALL, num_attention_heads=2, num_key_value_heads=2, intermediate_size=48, sliding_window=8
    ),
    "a recurrent state": transformers.MambaConfig(**SMALL),
    "biases by distance": transformers.BloomConfig(vocab_size=272, hidden_size=32, n_layer=2, n_head=2),
    "an encoder": transformers.T5Config(
        vocab_size=272, d_model=32, num_layers=2, d_ff=48, num_heads=2, d_kv=16, decoder_start_token_id=1
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_models_that_keep_something_else_do_not(name: str) -> None:
    auto = transformers.AutoModelForSeq2SeqLM if name == "an encoder" else AutoModelForCausalLM
    torch.manual_seed(7)
    assert not rolls(auto.from_config(OTHERS[name]).eval())


def test_the_cache_is_what_is_read_of_it(loaded: tuple[Any, Any]) -> None:
    """What is relied on of transformers: layers that each have keys and values ``[n, heads, s, d]`` to replace."""
    model, tokenizer = loaded
    cached = CachedRows(model, tokenizer)
    with torch.inference_mode():
        cached.read([[5, 6, 7], [8, 9]])
    cache = cached._cache
    assert type(cache) is cache_utils.DynamicCache
    assert [type(layer) for layer in cache.layers] == [cache_utils.DynamicLayer] * 2
    for layer in cache.layers:
        assert layer.keys.shape == layer.values.shape == (2, 2, 3, 16)
        assert layer.get_seq_length() == 3
        layer.keys, layer.values = layer.keys[:, :, 1:], layer.values[:, :, 1:]
        assert layer.get_seq_length() == 2


def test_without_these_parts_of_transformers_nothing_rolls(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(cache_utils, "DynamicLayer")
    assert not rolls(loaded[0])


def test_a_model_that_leaks_between_rows_does_not_roll(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measurement sees a row that joins in the wrong place."""
    monkeypatch.setattr(rolling, "_widened", lambda states, width: states.new_ones(*states.shape[:2], width, 16))
    assert not rolls(loaded[0])


def test_numbers_that_are_not_finite_end_the_batch(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    group = Group(model, tokenizer)
    group.join([0, 3])
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(DivergedError, match="the logits of the text"):
        group.step()
