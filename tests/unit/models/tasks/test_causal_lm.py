from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from lorabank.core.errors import DataError
from lorabank.core.shelves import TASK_TYPES
from lorabank.models.tasks.causal_lm import CausalLM, mean_cross_entropy
from lorabank.models.tasks.padding import padding_of

PROMPTS, ANSWERS = ([5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17]), ([20, 2], [21, 22, 23, 2], [24, 2])
ROWS = [{"prompt": prompt, "completion": answer} for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]


class Pads:
    pad_token_id = 2  # the end token, as where a tokenizer brings no pad token


@pytest.fixture(params=["llama", "gpt_neox", "gpt2"])
def model(request: pytest.FixtureRequest, make_base) -> PreTrainedModel:
    """Rotary positions, and learnt ones, for which it matters where a padded row begins."""
    if request.param == "gpt2":
        torch.manual_seed(7)
        sizes = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 66}
        return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3, bos_token_id=0, eos_token_id=2)).eval()
    return AutoModelForCausalLM.from_pretrained(make_base(request.param, AutoModelForCausalLM)).eval()


@pytest.fixture
def llama(make_base) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(make_base("llama", AutoModelForCausalLM)).eval()


def expected_loss(model: Any, rows: list[dict[str, list[int]]]) -> Tensor:
    """transformers' own loss, one row without padding at a time, weighted by the answers' tokens."""
    total, tokens = torch.zeros(()), 0
    for row in rows:
        ids = torch.tensor([row["prompt"] + row["completion"]])
        labels = torch.tensor([[-100] * len(row["prompt"]) + row["completion"]])
        total = total + model(input_ids=ids, labels=labels).loss * len(row["completion"])
        tokens += len(row["completion"])
    return total / tokens


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_loss_and_its_gradients_are_those_of_the_answers_alone(model) -> None:
    loss = CausalLM().loss(model, CausalLM().collate(Pads, ROWS))
    expected = expected_loss(model, ROWS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    found, wanted = gradients(model, loss), gradients(model, expected)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_padding_and_neighbours_change_nothing(model) -> None:
    inputs = CausalLM().collate(Pads, ROWS)
    for i, row in enumerate(ROWS):
        only = inputs["labels"].clone()
        only[[k for k in range(len(ROWS)) if k != i]] = -100
        among = CausalLM().loss(model, {**inputs, "labels": only})
        alone = CausalLM().loss(model, CausalLM().collate(Pads, [row]))
        torch.testing.assert_close(among, alone, atol=1e-5, rtol=0)


def test_logits_are_computed_where_labels_are_and_nowhere_else(model) -> None:
    assert padding_of(model).left  # by passes of its own, once for a model
    seen: list[torch.Size] = []
    model.get_output_embeddings().register_forward_hook(lambda module, given, out: seen.append(given[0].shape))
    CausalLM().loss(model, CausalLM().collate(Pads, ROWS))
    assert seen == [(3, 4, 32)]  # the longest answer has 4 tokens


def test_a_batch_ends_in_one_column() -> None:
    inputs = CausalLM().collate(Pads, ROWS)
    assert {name: tensor.tolist() for name, tensor in inputs.items()} == {
        "input_ids": [[5, 6, 7, 8, 9, 10, 11, 20], [2, 2, 2, 12, 13, 21, 22, 23], [2, 2, 2, 14, 15, 16, 17, 24]],
        "attention_mask": [[1] * 8, [0] * 3 + [1] * 5, [0] * 3 + [1] * 5],
        "position_ids": [list(range(8)), [0, 0, 0, *range(5)], [0, 0, 0, *range(5)]],
        "labels": [[-100, -100, 20, 2], [21, 22, 23, 2], [-100, -100, 24, 2]],
    }


class _Plain(nn.Module):
    """A model that can be told neither positions nor which logits to keep."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inside = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.inside(input_ids=input_ids, attention_mask=attention_mask)


class _Replicas(nn.Module):
    """What wraps a model for several devices."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.module(*inputs, **named)


@pytest.mark.parametrize("wrapper", [_Plain, _Replicas])
def test_other_forward_passes_give_the_same_loss(llama, wrapper) -> None:
    loss = CausalLM().loss(wrapper(llama), CausalLM().collate(Pads, ROWS))
    torch.testing.assert_close(loss, expected_loss(llama, ROWS), atol=1e-5, rtol=0)


def test_the_loss_of_a_half_precision_model_is_taken_in_float32(llama) -> None:
    llama.to(torch.bfloat16)
    inputs = CausalLM().collate(Pads, ROWS)
    assert CausalLM().loss(llama, inputs).dtype == torch.float32
    logits = torch.tensor([[[0.0, 9.0, 3.0], [1.0, 0.0, 0.0]]]).bfloat16()
    labels = torch.tensor([[2, -100]])
    by_hand = torch.log(torch.exp(torch.tensor(0.0)) + torch.exp(torch.tensor(9.0)) + torch.exp(torch.tensor(3.0))) - 3
    torch.testing.assert_close(mean_cross_entropy(logits, labels), by_hand, atol=1e-6, rtol=0)


def test_a_batch_without_an_answer_is_refused_before_it_is_passed() -> None:
    with pytest.raises(ValueError, match="no token of the batch is labelled"):
        CausalLM().collate(Pads, [{"prompt": [5, 6], "completion": []}, {"prompt": [7], "completion": []}])


def test_texts_become_rows_that_train(make_base) -> None:
    folder: Path = make_base("llama", AutoModelForCausalLM)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    task_type = TASK_TYPES.load("CAUSAL_LM")()
    settings: dict[str, Any] = {"labels": ("p", "n q"), "template": "{text} o {labels} r", "max_length": 10}
    examples = task_type.encode(tokenizer, ["a b", "c d e f g h"], ["p", "n q"], **settings)
    ids = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"])}
    spelt = [  # "p," is one unknown word
        (["a", "b", "o", "<unk>", "n", "q", "r"], ["p", "</s>"]),
        (["c", "d", "o", "<unk>", "n", "q", "r"], ["n", "q", "</s>"]),
    ]
    rows = [{"prompt": [ids[w] for w in p], "completion": [ids[w] for w in c]} for p, c in spelt]
    assert [{"prompt": row["prompt"], "completion": row["completion"]} for row in examples.rows] == rows
    assert (list(examples.lengths), examples.cut, examples.dropped) == ([9, 10], 1, 0)
    loss = task_type.loss(model, task_type.collate(tokenizer, examples.rows))
    torch.testing.assert_close(loss, expected_loss(model, rows), atol=1e-5, rtol=0)


def test_plain_text_is_learnt_from_its_first_word_on(make_base) -> None:
    folder: Path = make_base("llama", AutoModelForCausalLM)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    examples = CausalLM().encode(tokenizer, ["", ""], ["a b", "a b c d e f"], labels=(), template=None, max_length=5)
    assert (examples.cut, list(examples.lengths)) == (1, [4, 5])
    loss = CausalLM().loss(model, CausalLM().collate(tokenizer, examples.rows))
    # with the beginning token in front, transformers' loss over everything is the loss over every word
    total = 3 * model(input_ids=(whole := torch.tensor([[0, 4, 5, 2]])), labels=whole).loss
    total = total + 4 * model(input_ids=(whole := torch.tensor([[0, 4, 5, 6, 7]])), labels=whole).loss
    torch.testing.assert_close(loss, total / 7, atol=1e-5, rtol=0)


def test_an_answer_longer_than_the_row_is_dropped_and_none_left_is_an_error(make_base) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_base("llama", AutoModelForCausalLM))
    settings: dict[str, Any] = {"labels": (), "template": None, "max_length": 4}
    examples = CausalLM().encode(tokenizer, ["a b", "a b"], ["c d", "c d e"], **settings)
    assert [(row["prompt"], row["completion"]) for row in examples.rows] == [([5], [6, 7, 2])]
    assert (examples.cut, examples.dropped) == (1, 1)
    with pytest.raises(DataError, match="no training row is left") as caught:
        CausalLM().encode(tokenizer, ["a b"], ["c d e"], **settings)
    assert "--max-length" in str(caught.value.hint)
