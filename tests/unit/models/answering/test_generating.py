from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

from lorabank.core.config import SamplingConfig
from lorabank.core.errors import DataError
from lorabank.models.answering.generating import end_tokens, generate, write
from lorabank.models.answering.replies import GenerationRequest

PAD, END, VOCABULARY = 1, 2, 64
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
WORDS = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), VOCABULARY))]
NEW = 7

IDS = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": PAD}
SIZES = IDS | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"max_position_embeddings": 50}
GPT2 = IDS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 50}
BLOOM = IDS | {"hidden_size": 32, "n_layer": 2, "n_head": 4}
MAMBA = IDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
T5 = IDS | {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": PAD}
BART = IDS | {"d_model": 32, "max_position_embeddings": 50, "decoder_start_token_id": END, "forced_eos_token_id": None}
BART |= {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
BART |= {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}

CAUSAL: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig, SIZES | {"num_key_value_heads": 2}),
    "gpt_neox": (tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig, SIZES),
    "qwen2": (tf.Qwen2ForCausalLM, tf.Qwen2Config, SIZES | {"num_key_value_heads": 2}),
    "gpt2": (tf.GPT2LMHeadModel, tf.GPT2Config, GPT2),
    "mistral": (tf.MistralForCausalLM, tf.MistralConfig, SIZES | {"num_key_value_heads": 2, "sliding_window": 5}),
    "bloom": (tf.BloomForCausalLM, tf.BloomConfig, BLOOM),
    "mamba": (tf.MambaForCausalLM, tf.MambaConfig, MAMBA),
}
EVERY = CAUSAL | {
    "t5": (tf.T5ForConditionalGeneration, tf.T5Config, T5),
    "mt5": (tf.MT5ForConditionalGeneration, tf.MT5Config, T5),
    "bart": (tf.BartForConditionalGeneration, tf.BartConfig, BART),
}


def sentences(*lengths: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(5, VOCABULARY) for _ in range(length)] for length in lengths]


PROMPTS = sentences(9, 3, 12, 1, 6)
LONGEST_FIRST = [2, 0, 4, 1, 3]


def tiny(name: str) -> Any:
    model_class, config_class, sizes = EVERY[name]
    torch.manual_seed(4)
    model = model_class(config_class(**sizes)).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.25)
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def nothing(rows: Sequence[int]) -> None:
    """The model is in one state for all rows."""


@torch.no_grad()
def argmax_tokens(model: Any, prompt: list[int], ends: Sequence[int]) -> list[int]:
    """The likeliest token, again and again: one row, no cache, no padding."""
    said: list[int] = []
    while len(said) < NEW and not (said and said[-1] in ends):
        if model.config.is_encoder_decoder:
            start = torch.tensor([[model.config.decoder_start_token_id, *said]])
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=start, use_cache=False).logits
        else:
            logits = model(input_ids=torch.tensor([prompt + said]), use_cache=False).logits
        said.append(int(logits[0, -1].argmax()))
    return said


def words(tokens: Sequence[int], ends: Sequence[int]) -> str:
    before = tokens[: next((k for k, token in enumerate(tokens) if token in ends), len(tokens))]
    return " ".join(WORDS[token] for token in before if token >= len(SPECIAL))


def say(model: Any, tokenizer: Any, **changes: Any) -> list[str]:
    settings = {"max_new_tokens": NEW, "batch_size": 3, "enter": nothing} | changes
    return generate(model, tokenizer, PROMPTS, **settings)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("name", EVERY)
def test_the_likeliest_token_of_each_step(name: str, batch_size: int, tokenizer: Any) -> None:
    model = tiny(name)
    expected = [words(argmax_tokens(model, prompt, [END]), [END]) for prompt in PROMPTS]
    assert len(set(expected)) >= 4  # the rows are told apart, so that their order shows
    assert say(model, tokenizer, batch_size=batch_size) == expected


@pytest.mark.parametrize("name", EVERY)
def test_rows_that_end_early(name: str, tokenizer: Any) -> None:
    """End tokens that two of the rows say in the middle of their answer, as a list in ``generation_config``."""
    model = tiny(name)
    free = [argmax_tokens(model, prompt, []) for prompt in PROMPTS]
    ends = [free[0][2], free[1][4]]
    expected = [words(argmax_tokens(model, prompt, [END, *ends]), [END, *ends]) for prompt in PROMPTS]
    lengths = [len(text.split()) for text in expected]
    assert min(lengths) < max(lengths)
    model.generation_config.eos_token_id = ends
    assert say(model, tokenizer) == expected
    one_by_one = [
        model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=[END, *ends])[
            0
        ].tolist()
        for prompt in PROMPTS
    ]
    start = [1 if model.config.is_encoder_decoder else len(prompt) for prompt in PROMPTS]
    assert expected == [words(row[skip:], [END, *ends]) for row, skip in zip(one_by_one, start, strict=True)]


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_tokenizer_s_end_token_ends_an_answer_too(name: str, tokenizer: Any) -> None:
    model = tiny(name)
    said = argmax_tokens(model, PROMPTS[0], [])
    assert model.generation_config.eos_token_id is None
    tokenizer = Renamed(tokenizer, eos_token_id=said[3])
    assert generate(model, tokenizer, PROMPTS[:1], max_new_tokens=NEW, batch_size=1, enter=nothing) == [
        words(said, [said[3]])
    ]


class Renamed:
    """A tokenizer with other special tokens."""

    def __init__(self, tokenizer: Any, **changes: Any) -> None:
        self._tokenizer = tokenizer
        self.__dict__.update(changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def test_end_tokens_of_model_and_tokenizer(tokenizer: Any) -> None:
    model = tiny("llama")
    for own, expected in ((None, [END]), (END, [END]), (9, [END, 9]), ([9, 8], [END, 8, 9])):
        model.generation_config.eos_token_id = own
        assert end_tokens(model, tokenizer) == expected
    model.generation_config.eos_token_id = None
    assert end_tokens(model, Renamed(tokenizer, eos_token_id=None)) == []
    assert len(say(model, Renamed(tokenizer, eos_token_id=None))) == 5


@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
def test_the_model_s_own_generation_settings_are_left_aside(
    name: str, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny(name)
    expected = say(model, tokenizer)
    own = tf.GenerationConfig(
        do_sample=True,
        temperature=5.0,
        top_k=3,
        top_p=0.5,
        min_p=0.1,
        num_beams=3,
        num_return_sequences=2,
        length_penalty=2.0,
        repetition_penalty=7.0,
        no_repeat_ngram_size=1,
        max_length=2,
        min_new_tokens=6,
        bad_words_ids=[[token] for token in range(5, 30)],
        forced_bos_token_id=60,
        forced_eos_token_id=61,
        suppress_tokens=list(range(30, 50)),
        decoder_start_token_id=model.generation_config.decoder_start_token_id,
        return_dict_in_generate=True,
    )
    model.generation_config = own
    tf.utils.logging.enable_propagation()
    try:
        with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
            warnings.simplefilter("error")
            assert say(model, tokenizer) == expected
    finally:
        tf.utils.logging.disable_propagation()
    assert not caplog.records
    assert model.generation_config is own


class Entered:
    """Makes a model answer each row in a way of its own: what it embeds is moved by the vector of ``rows``."""

    def __init__(self, model: Any, rows: int) -> None:
        self.calls: list[list[int]] = []
        width = model.get_input_embeddings().embedding_dim
        self._vectors = torch.randn(rows, 1, width, generator=torch.Generator().manual_seed(5))
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.num_embeddings == VOCABULARY:
                module.register_forward_hook(self._move)

    def __call__(self, rows: Sequence[int]) -> None:
        self.calls.append(list(rows))

    def _move(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        assert len(output) == len(self.calls[-1])
        return output + self._vectors[self.calls[-1]]


@pytest.mark.parametrize("name", EVERY)
def test_every_row_is_answered_in_its_own_state(name: str, tokenizer: Any) -> None:
    model = tiny(name)
    unmoved = say(model, tokenizer)
    entered = Entered(model, len(PROMPTS))
    found = say(model, tokenizer, enter=entered)
    expected = []
    for i, prompt in enumerate(PROMPTS):
        entered([i])
        expected.append(words(argmax_tokens(model, prompt, [END]), [END]))
    assert found == expected
    assert found != unmoved


def test_what_is_entered_before_each_pass(tokenizer: Any) -> None:
    def calls(name: str) -> list[list[int]]:
        seen: list[list[int]] = []
        no_end = Renamed(tokenizer, eos_token_id=None)
        say(tiny(name), no_end, enter=lambda rows: seen.append(list(rows)))
        return seen

    first, second = LONGEST_FIRST[:3], LONGEST_FIRST[3:]
    assert calls("llama") == [first] * NEW + [second] * NEW
    assert calls("t5") == [first] * (1 + NEW) + [second] * (1 + NEW)  # the encoder once
    assert calls("bloom") == [[i] for i in LONGEST_FIRST for _ in range(NEW)]  # takes no padding: one length each


def test_the_model_is_left_as_it_was(tokenizer: Any) -> None:
    model = tiny("gpt2").train()
    own, hooks = model.generation_config, len(model._forward_pre_hooks)
    say(model, tokenizer)

    def fail(rows: Sequence[int]) -> None:
        raise RuntimeError("no such state")

    with pytest.raises(RuntimeError, match="no such state"):
        say(model, tokenizer, enter=fail)
    assert model.training
    assert model.generation_config is own
    assert len(model._forward_pre_hooks) == hooks


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", EVERY)
def test_on_a_gpu(name: str, tokenizer: Any) -> None:
    model = tiny(name)
    expected = say(model, tokenizer)
    assert say(model.to("cuda"), tokenizer) == expected


def test_dropout_is_off(tokenizer: Any) -> None:
    model = tiny("gpt2")
    expected = say(model, tokenizer)
    assert say(model.train(), tokenizer) == expected


def test_no_prompts_and_a_prompt_without_tokens(tokenizer: Any) -> None:
    assert generate(tiny("llama"), tokenizer, [], max_new_tokens=2, batch_size=1, enter=nothing) == []
    with pytest.raises(DataError, match="prompt of row 2 has no tokens"):
        generate(tiny("llama"), tokenizer, [[5], []], max_new_tokens=2, batch_size=1, enter=nothing)


@torch.no_grad()
def drawn_by_hand(model: Any, prompt: list[int], settings: SamplingConfig) -> list[int]:
    """Draws from the nucleus, one row, no cache: Python's loops over sorted probabilities in float64."""
    generator, said = torch.Generator().manual_seed(settings.seed), []
    while len(said) < settings.max_new_tokens:
        if model.config.is_encoder_decoder:
            start = torch.tensor([[model.config.decoder_start_token_id, *said]])
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=start, use_cache=False).logits
            seen = set(said)
        else:
            logits = model(input_ids=torch.tensor([prompt + said]), use_cache=False).logits
            seen = {*prompt, *said}
        row = logits[0, -1].float()
        for token in seen:
            row[token] = row[token] / settings.repetition_penalty if row[token] > 0 else (
                row[token] * settings.repetition_penalty
            )  # fmt: skip
        shares = (row.double() / settings.temperature).softmax(-1).tolist()
        kept, total = [], 0.0
        for token in sorted(range(len(shares)), key=lambda k: -shares[k]):
            if total >= settings.top_p:
                break
            kept.append(token)
            total += shares[token]
        point = float(torch.rand((), generator=generator, dtype=torch.float64)) * total
        for token in kept:
            point -= shares[token]
            if point < 0:
                break
        said.append(token)
        if token == END:
            break
    return said


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "t5", "bart"])
def test_each_row_draws_by_its_own_settings(name: str, tokenizer: Any) -> None:
    """Rows of one batch with other temperatures, nuclei, penalties, seeds and lengths, one of them greedy."""
    model = tiny(name)
    settings = [
        SamplingConfig(max_new_tokens=5, temperature=0.7, top_p=0.9, seed=1),
        SamplingConfig(max_new_tokens=7, temperature=1.3, repetition_penalty=1.5, seed=2),
        SamplingConfig(max_new_tokens=7),
        SamplingConfig(max_new_tokens=3, temperature=2.0, top_p=0.5, seed=3),
        SamplingConfig(max_new_tokens=6, temperature=1.0, seed=2),
    ]
    found = write(model, tokenizer, PROMPTS, [GenerationRequest(one) for one in settings], batch_size=5, enter=nothing)
    for prompt, one, written in zip(PROMPTS, settings, found, strict=True):
        tokens = drawn_by_hand(model, prompt, one) if one.temperature else argmax_tokens(model, prompt, [END])
        assert written.text == words(tokens, [END])
        assert written.prompt_tokens == len(prompt)
        assert written.finish == ("stop" if tokens[-1] == END else "length")
        assert written.tokens == len(tokens) - (tokens[-1] == END)


def test_a_row_that_has_ended_is_told_before_its_batch(tokenizer: Any) -> None:
    order: list[int] = []
    sizes = [SamplingConfig(max_new_tokens=1 + i) for i in range(5)]
    requests = [GenerationRequest(size, done=lambda one: order.append(one.tokens)) for size in sizes]
    found = write(tiny("llama"), Renamed(tokenizer, eos_token_id=None), PROMPTS, requests, batch_size=5, enter=nothing)
    assert order == [1, 2, 3, 4, 5] == [one.tokens for one in found]
