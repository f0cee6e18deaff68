"""What a row gives in a batch, of whatever size and beside whatever rows, is what it gives alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorabank.models.answering.generating import generate
from lorabank.models.answering.likelihood import completion_log_likelihoods, label_log_likelihoods
from lorabank.models.mixing.features import extract_features
from lorabank.models.tasks.causal_lm import CausalLM
from lorabank.models.tasks.classification import Classification
from lorabank.models.tasks.encoding import pad_batch
from lorabank.models.tasks.padding import padding_of, passes, row_batches
from lorabank.models.tasks.seq2seq_lm import Seq2SeqLM
from lorabank.training.replaying import MixedTask
from tests.unit.models.odd_models import (
    CLASSIFIERS,
    DECODERS,
    ENCODER_DECODERS,
    END,
    TOKENIZER,
    USUAL,
    tiny,
    words,
)

LENGTHS = (9, 2, 13, 9, 5, 17, 2, 9)
ROWS = words(*LENGTHS)
COMPLETIONS = [[*row, END] for row in words(1, 3, 2, 1, 1, 2, 3, 2, seed=1)]
PAIRS = [{"prompt": prompt, "completion": done} for prompt, done in zip(ROWS, COMPLETIONS, strict=True)]
LEFT_LEAKS = {"BartForCausalLM", "PegasusForCausalLM", "RecurrentGemmaForCausalLM", "RwkvForCausalLM"}
RIGHT_LEAKS = {"ConvBert", "FNet", "MobileBert", "Nystromformer", "XLNet"}
SIZES = range(1, 9)


def alone(model: Any, ids: list[int], answer: list[int] | None = None) -> Tensor:
    """Logits of one row without padding, from transformers itself."""
    more = {} if answer is None else {"decoder_input_ids": torch.tensor([answer])}
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([ids]), **more).logits[0]
    return logits


def log_likelihood(model: Any, prompt: list[int], completion: list[int]) -> float:
    """Of a completion behind its prompt."""
    if model.config.is_encoder_decoder:
        logits = alone(model, prompt, [model.config.decoder_start_token_id, *completion[:-1]])
    else:
        logits = alone(model, (prompt + completion)[:-1])[-len(completion) :]
    return -float(F.cross_entropy(logits, torch.tensor(completion), reduction="sum"))


@pytest.mark.parametrize("name", CLASSIFIERS | DECODERS | ENCODER_DECODERS)
def test_what_padding_does_is_seen(name: str) -> None:
    padding = padding_of(tiny(name))
    assert padding.left == (name not in LEFT_LEAKS | RIGHT_LEAKS)
    assert padding.right == (name not in RIGHT_LEAKS)
    assert padding.beside


@pytest.mark.parametrize("name", USUAL)
def test_usual_models_pass_a_batch_at_once(name: str) -> None:
    model = tiny(name)
    assert passes(model, LENGTHS) == [list(range(8))]
    assert row_batches(model, LENGTHS, 4) == [[5, 2, 0, 3], [7, 4, 1, 6]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_of_a_classifier(name: str, size: int) -> None:
    model = tiny(name)
    for rows in row_batches(model, LENGTHS, size):
        with torch.no_grad():
            found = model(**pad_batch(TOKENIZER, [ROWS[i] for i in rows])).logits
        for k, i in enumerate(rows):
            torch.testing.assert_close(found[k], alone(model, ROWS[i]), atol=1e-4, rtol=1e-4)


@pytest.mark.by_turns
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", DECODERS | ENCODER_DECODERS)
def test_likelihoods_of_a_language_model(name: str, size: int) -> None:
    model = tiny(name)
    settings: dict[str, Any] = {"batch_size": size, "enter": lambda rows: None}
    found, _ = completion_log_likelihoods(model, TOKENIZER, ROWS, COMPLETIONS, **settings)
    expected = [log_likelihood(model, *pair.values()) for pair in PAIRS]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    labels = [[7, END], [9, 8, END]]
    scores = label_log_likelihoods(model, TOKENIZER, ROWS, labels, share_prefix=False, **settings)
    each = [[log_likelihood(model, row, label) for label in labels] for row in ROWS]
    np.testing.assert_allclose(scores, each, atol=1e-3)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_loss_of_a_classifier_is_the_mean_of_its_rows(name: str) -> None:
    model = tiny(name)
    inputs = Classification().collate(TOKENIZER, [{"ids": ids, "label": i % 2} for i, ids in enumerate(ROWS)])
    expected = torch.stack([F.cross_entropy(alone(model, ids), torch.tensor(i % 2)) for i, ids in enumerate(ROWS)])
    torch.testing.assert_close(Classification().loss(model, inputs), expected.mean(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", DECODERS | ENCODER_DECODERS)
def test_the_loss_of_a_language_model_is_what_it_is_scored_by(name: str) -> None:
    model = tiny(name)
    kind = CausalLM() if name in DECODERS else Seq2SeqLM()
    inputs = kind.collate(TOKENIZER, PAIRS)
    loss = MixedTask(kind, None).loss(model, inputs)
    total = sum(log_likelihood(model, *pair.values()) for pair in PAIRS)
    assert float(loss.detach()) == pytest.approx(-total / sum(map(len, COMPLETIONS)), abs=1e-4)
    loss.backward()
    model.zero_grad()


@pytest.mark.parametrize("name", ["FNet", "RwkvForCausalLM", "RobertaForCausalLM"])
def test_rows_without_labels_count_for_nothing(name: str) -> None:
    model = tiny(name)
    kind = CausalLM() if name in DECODERS else Classification()
    rows = PAIRS if name in DECODERS else [{"ids": ids, "label": i % 2} for i, ids in enumerate(ROWS)]
    inputs = kind.collate(TOKENIZER, rows)
    for i in (0, 5):
        only = torch.full_like(inputs["labels"], -100)
        only[i] = inputs["labels"][i]
        among = kind.loss(model, {**inputs, "labels": only})
        by_itself = kind.loss(model, kind.collate(TOKENIZER, [rows[i]]))
        torch.testing.assert_close(among, by_itself, atol=1e-4, rtol=0)


class _Words:
    """A tokenizer whose words are numbers."""

    pad_token_id, eos_token_id = TOKENIZER.pad_token_id, END

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


@pytest.mark.parametrize("name", [*DECODERS, *ENCODER_DECODERS])
def test_generated_answers_are_those_of_single_prompts(name: str) -> None:
    model = tiny(name)
    settings: dict[str, Any] = {"max_new_tokens": 4, "enter": lambda rows: None}
    single = [generate(model, _Words(), [row], batch_size=1, **settings)[0] for row in ROWS]
    for size in (2, 3, 8):
        assert generate(model, _Words(), ROWS, batch_size=size, **settings) == single


@pytest.mark.parametrize("name", ["Bert", "ConvBert", "FNet", "RwkvForCausalLM", "T5ForConditionalGeneration"])
def test_features_are_those_of_single_texts(name: str) -> None:
    model, texts = tiny(name), [" ".join(map(str, row)) for row in ROWS]
    single = np.concatenate([extract_features(model, _Words(), [text], max_length=66) for text in texts])
    for size in (2, 5, 8):
        found = extract_features(model, _Words(), texts, max_length=66, batch_size=size)
        np.testing.assert_allclose(found, single, atol=1e-5)


@pytest.mark.parametrize("name", ["Bert", "LlamaForCausalLM"])
def test_measuring_leaves_nothing_behind(name: str) -> None:
    model = tiny.__wrapped__(name)
    model.train()
    first = next(module for module in model.modules() if not list(module.children()))
    first.eval()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    random_states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    padding_of(model)
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == random_states[1:]
    assert model.training
    assert not first.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])


@pytest.mark.parametrize("name", DECODERS | ENCODER_DECODERS)
def test_generated_answers_are_those_of_plain_passes(name: str) -> None:
    """One token after the other, everything before it read anew."""
    model = tiny(name)
    (found,) = generate(model, _Words(), ROWS[:1], max_new_tokens=3, batch_size=1, enter=lambda rows: None)
    start = [model.config.decoder_start_token_id] if model.config.is_encoder_decoder else ROWS[0]
    answer: list[int] = []
    while len(answer) < 3:
        read = [*start, *answer]
        given = (ROWS[0], read) if model.config.is_encoder_decoder else (read,)
        answer.append(int(alone(model, *given)[-1].argmax()))
        if answer[-1] == END:
            break
    assert found.split() == [str(token) for token in answer if token != END]
