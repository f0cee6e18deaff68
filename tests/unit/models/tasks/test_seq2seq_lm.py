from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from lorabank.core.errors import DataError
from lorabank.core.shelves import TASK_TYPES
from lorabank.models.tasks.padding import padding_of
from lorabank.models.tasks.seq2seq_lm import Seq2SeqLM

ROWS = [
    {"prompt": [5, 6, 7, 8, 9, 1], "completion": [20, 1]},
    {"prompt": [12, 1], "completion": [21, 22, 23, 1]},
    {"prompt": [14, 15, 16, 1], "completion": [24, 1]},
]
WORDS = ["<pad>", "</s>", "<unk>", "<s>", *"abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture(params=["t5", "bart"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(7)
    if request.param == "t5":
        sizes = {"vocab_size": 40, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
        ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
        return T5ForConditionalGeneration(T5Config(**sizes, **ids, initializer_factor=1.0)).eval()
    layers = {f"{side}_{key}": 2 for side in ("encoder", "decoder") for key in ("layers", "attention_heads")}
    sizes = {
        "vocab_size": 40,
        "d_model": 32,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 66,
    }
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3, "decoder_start_token_id": 1}
    config = BartConfig(**sizes, **layers, **ids, forced_eos_token_id=None, init_std=0.3)
    return BartForConditionalGeneration(config).eval()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter and </s> at the end, as T5 has it."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def expected_loss(model: Any, rows: list[dict[str, list[int]]]) -> Tensor:
    """transformers' own loss, one row without padding at a time, weighted by the answers' tokens."""
    total, tokens = torch.zeros(()), 0
    for row in rows:
        labels = torch.tensor([row["completion"]])
        total = total + model(input_ids=torch.tensor([row["prompt"]]), labels=labels).loss * labels.numel()
        tokens += labels.numel()
    return total / tokens


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class Pads:
    pad_token_id = 0


def test_the_loss_and_its_gradients_are_those_of_the_answers(model) -> None:
    loss = Seq2SeqLM().loss(model, Seq2SeqLM().collate(Pads, ROWS))
    expected = expected_loss(model, ROWS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    found, wanted = gradients(model, loss), gradients(model, expected)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_padding_and_neighbours_change_nothing(model) -> None:
    inputs = Seq2SeqLM().collate(Pads, ROWS)
    for i, row in enumerate(ROWS):
        only = inputs["labels"].clone()
        only[[k for k in range(len(ROWS)) if k != i]] = -100
        among = Seq2SeqLM().loss(model, {**inputs, "labels": only})
        alone = Seq2SeqLM().loss(model, Seq2SeqLM().collate(Pads, [row]))
        torch.testing.assert_close(among, alone, atol=1e-5, rtol=0)


def test_logits_are_computed_for_the_answers_alone(model) -> None:
    assert padding_of(model).right  # by passes of its own, once for a model
    seen: list[torch.Size] = []
    model.get_output_embeddings().register_forward_hook(lambda module, given, out: seen.append(given[0].shape))
    Seq2SeqLM().loss(model, Seq2SeqLM().collate(Pads, ROWS))
    assert seen == [(3, 4, 32)]


def test_a_batch_is_padded_behind_its_rows() -> None:
    inputs = Seq2SeqLM().collate(Pads, ROWS)
    assert {name: tensor.tolist() for name, tensor in inputs.items()} == {
        "input_ids": [[5, 6, 7, 8, 9, 1], [12, 1, 0, 0, 0, 0], [14, 15, 16, 1, 0, 0]],
        "attention_mask": [[1] * 6, [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]],
        "labels": [[20, 1, -100, -100], [21, 22, 23, 1], [24, 1, -100, -100]],
    }


class _Replicas(nn.Module):
    """What wraps a model for several devices."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.module(*inputs, **named)


def test_a_wrapped_model_gives_the_same_loss(model) -> None:
    loss = Seq2SeqLM().loss(_Replicas(model), Seq2SeqLM().collate(Pads, ROWS))
    torch.testing.assert_close(loss, expected_loss(model, ROWS), atol=1e-5, rtol=0)


def test_a_batch_without_an_answer_is_refused_before_it_is_passed() -> None:
    with pytest.raises(ValueError, match="no token of the batch is labelled"):
        Seq2SeqLM().collate(Pads, [{"prompt": [5, 6], "completion": []}, {"prompt": [7], "completion": []}])


def test_texts_become_rows_that_train(model, tokenizer) -> None:
    task_type = TASK_TYPES.load("SEQ_2_SEQ_LM")()
    settings: dict[str, Any] = {"labels": ("p", "n q"), "template": "{text} o {labels} r", "max_length": 11}
    examples = task_type.encode(tokenizer, ["a b", "c d e f g h"], ["p", "n q"], **settings)
    spelt = [  # "p," is one unknown word
        (["a", "b", "o", "<unk>", "n", "q", "r", "</s>"], ["p", "</s>"]),
        (["c", "d", "o", "<unk>", "n", "q", "r", "</s>"], ["n", "q", "</s>"]),
    ]
    rows = [{"prompt": [WORDS.index(w) for w in p], "completion": [WORDS.index(w) for w in c]} for p, c in spelt]
    assert [{"prompt": row["prompt"], "completion": row["completion"]} for row in examples.rows] == rows
    assert (list(examples.lengths), examples.cut, examples.dropped) == ([10, 11], 1, 0)
    loss = task_type.loss(model, task_type.collate(tokenizer, examples.rows))
    torch.testing.assert_close(loss, expected_loss(model, rows), atol=1e-5, rtol=0)


def test_plain_text_answers_an_empty_prompt(tokenizer) -> None:
    settings: dict[str, Any] = {"labels": (), "template": None, "max_length": 4}
    examples = Seq2SeqLM().encode(tokenizer, ["", ""], ["a b", "a b c d e"], **settings)
    assert [(row["prompt"], row["completion"]) for row in examples.rows] == [([1], [4, 5, 1]), ([1], [4, 5, 6])]
    assert (examples.cut, examples.dropped, list(examples.lengths)) == (1, 0, [4, 4])


def test_an_answer_longer_than_the_row_is_dropped_and_none_left_is_an_error(tokenizer) -> None:
    settings: dict[str, Any] = {"labels": (), "template": None, "max_length": 5}
    examples = Seq2SeqLM().encode(tokenizer, ["a b", "a b"], ["c d", "c d e"], **settings)
    assert [(row["prompt"], row["completion"]) for row in examples.rows] == [([5, 1], [6, 7, 1])]
    assert (examples.cut, examples.dropped) == (1, 1)
    with pytest.raises(DataError, match="no training row is left") as caught:
        Seq2SeqLM().encode(tokenizer, ["a b"], ["c d e"], **settings)
    assert "--max-length" in str(caught.value.hint)
