from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

from lorabank.core.errors import IncompatibleError
from lorabank.models.answering.base import AnswerForm
from lorabank.models.answering.head_answers import HeadAnswerer
from lorabank.models.bases.loading import LoadedBase, describe_base, load_base
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.mixing.features import extract_features
from lorabank.models.tasks.heads import Head, build_head, head_state, load_head, put_head, reserve_heads, switch_heads

SIZES = (2, 5, 3)  # labels of three tasks


def load(folder: Path) -> LoadedBase:
    return load_base(describe_base(resolve_base(str(folder))))


@pytest.fixture
def base(make_base, kind: str) -> LoadedBase:
    return load(make_base(kind))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(4, 30, (6, 9))
    mask = torch.ones_like(ids)
    ids[0, 5:], mask[0, 5:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


def separate(folder: Path, head: Head, pad: int) -> PreTrainedModel:
    """transformers' own model with this head alone, built without our code."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=head.num_labels)
    missing = model.load_state_dict(head.state(), strict=False)
    assert not missing.unexpected_keys
    model.config.pad_token_id = pad
    return model.eval()


@torch.inference_mode()
def expected_logits(base: LoadedBase, heads: list[Head], batch: dict, folder: Path) -> list[torch.Tensor]:
    return [separate(folder, head, base.model.config.pad_token_id)(**batch).logits for head in heads]


@pytest.fixture
def heads(base: LoadedBase) -> list[Head]:
    return [build_head(base.model, base.head_modules, size, seed) for seed, size in enumerate(SIZES)]


@torch.inference_mode()
def test_each_row_meets_its_own_head(base, heads, batch, tmp_path: Path) -> None:
    singles = expected_logits(base, heads, batch, tmp_path / "base")
    selection = switch_heads(base.model, heads)
    rows = torch.tensor([2, 0, 1, 1, 0, 2])
    selection.select(rows)
    logits = base.model(**batch).logits
    assert logits.shape == (6, 5)
    for row, task in enumerate(rows.tolist()):
        size = SIZES[task]
        torch.testing.assert_close(logits[row, :size], singles[task][row], atol=1e-6, rtol=1e-6)
        assert (logits[row, size:] == -torch.inf).all()
    assert (singles[0][1] - singles[2][1, :2]).abs().max() > 1e-3  # heads differ, so the choice shows


@torch.inference_mode()
def test_one_head_for_all_rows(base, heads, batch, tmp_path: Path) -> None:
    singles = expected_logits(base, heads, batch, tmp_path / "base")
    selection = switch_heads(base.model, heads)
    for task, size in enumerate(SIZES):
        selection.select(task)
        logits = base.model(**batch).logits
        assert logits.shape == (6, 5)
        torch.testing.assert_close(logits[:, :size], singles[task], atol=1e-6, rtol=1e-6)
        assert (logits[:, size:] == -torch.inf).all()


@torch.inference_mode()
def test_one_head_is_put_back(base, heads, batch, tmp_path: Path) -> None:
    singles = expected_logits(base, heads, batch, tmp_path / "base")
    switch_heads(base.model, heads)
    put_head(base.model, heads[1])
    torch.testing.assert_close(base.model(**batch).logits, singles[1], atol=1e-6, rtol=1e-6)
    assert base.model.config.num_labels == 5
    assert head_state(base.model, base.head_modules).keys() == heads[1].state().keys()


def test_the_loss_of_a_head_trains_it_alone(base, heads, batch) -> None:
    put_head(base.model, heads[2])
    out = base.model(**batch, labels=torch.tensor([0, 1, 2, 0, 1, 2]))
    torch.testing.assert_close(
        out.loss, torch.nn.functional.cross_entropy(out.logits, torch.tensor([0, 1, 2, 0, 1, 2]))
    )
    out.loss.backward()
    trained = {name for name, p in base.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == set(heads[2].state())


def test_gradients_pass_the_switch(base, heads, batch) -> None:
    selection = switch_heads(base.model, heads)
    selection.select(torch.tensor([0, 0, 2, 2, 0, 2]))
    logits = base.model(**batch).logits
    torch.where(logits.isinf(), 0.0, logits).square().sum().backward()
    for task, head in enumerate(heads):
        for module in head.modules.values():
            for parameter in module.parameters():
                assert (parameter.grad is not None) == (task != 1)
                assert task == 1 or parameter.grad.isfinite().all()


def test_a_seed_is_a_head(base, kind: str) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = build_head(base.model, base.head_modules, 4, 11).state()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again = build_head(base.model, base.head_modules, 4, 11).state()
    other = build_head(base.model, base.head_modules, 4, 12).state()
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        if name.endswith("weight"):  # initializer_range of the test models
            assert not torch.equal(tensor, other[name])
            assert 0.2 < tensor.std() < 0.4
            assert abs(tensor.mean()) < 0.1
        else:
            assert not tensor.any()


def test_a_stored_head_comes_back(base, batch) -> None:
    head = build_head(base.model, base.head_modules, 4, 11)
    stored = {name: tensor.clone() for name, tensor in head.state().items()}
    again = load_head(base.model, base.head_modules, 4, stored)
    assert again.num_labels == 4
    for name, tensor in again.state().items():
        assert torch.equal(tensor, stored[name])
    for module in again.modules.values():
        assert not module.training
        assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("change", ["missing", "extra", "size"])
def test_a_head_that_does_not_fit(base, change: str) -> None:
    state = build_head(base.model, base.head_modules, 4, 0).state()
    labels = 4
    if change == "missing":
        del state[min(state)]
    elif change == "extra":
        state["classifier.more"] = torch.ones(1)
    else:
        labels = 3
    with pytest.raises(IncompatibleError, match="head tensor"):
        load_head(base.model, base.head_modules, labels, state)


def test_a_selection_that_does_not_fit(base, heads, batch) -> None:
    selection = switch_heads(base.model, heads)
    for rows in (3, -1, torch.tensor([0, 3])):
        with pytest.raises(IndexError, match="3 heads"):
            selection.select(rows)
    selection.select(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="2 rows, the batch has 6"):
        base.model(**batch)


@torch.inference_mode()
def test_a_head_is_asked_for_when_it_is_first_chosen(base, heads, batch, tmp_path: Path) -> None:
    """And the first one at once: passes that choose none go through it."""
    singles = expected_logits(base, heads, batch, tmp_path / "base")
    asked: list[int] = []

    class Counted:
        def __getitem__(self, index: int, /) -> Head:
            asked.append(index)
            return heads[index]

    selection = reserve_heads(base.model, Counted(), SIZES)
    selection.select(torch.tensor([2, 2, 0, 2, 0, 2]))
    logits = base.model(**batch).logits
    selection.select(2)
    assert asked == [0, 2]
    torch.testing.assert_close(logits[0, : SIZES[2]], singles[2][0], atol=1e-6, rtol=1e-6)
    assert logits.shape == (6, max(SIZES))


@torch.inference_mode()
def test_heads_of_one_size_are_not_padded(make_base, batch) -> None:
    base = load(make_base("roberta"))
    # As many labels as the head is wide: the size alone does not say which layer makes the labels.
    heads = [build_head(base.model, base.head_modules, 32, seed) for seed in range(2)]
    selection = switch_heads(base.model, heads)
    selection.select(torch.tensor([0, 1, 0, 1, 0, 1]))
    logits = base.model(**batch).logits
    assert logits.shape == (6, 32)
    assert logits.isfinite().all()


@torch.inference_mode()
def test_only_the_layer_that_makes_the_labels_is_padded(make_base, batch) -> None:
    base = load(make_base("distilbert"))
    # More labels than the inner layer (pre_classifier, 32 wide) has outputs.
    heads = [build_head(base.model, base.head_modules, size, seed) for seed, size in enumerate((40, 3))]
    put_head(base.model, heads[0])
    single = base.model(**batch).logits
    switch_heads(base.model, heads).select(torch.tensor([0, 1, 0, 1, 0, 1]))
    logits = base.model(**batch).logits
    assert logits.shape == (6, 40)
    torch.testing.assert_close(logits[::2], single[::2], atol=1e-6, rtol=1e-6)


@torch.inference_mode()
def test_a_pooler_switches_with_its_head(make_base, batch) -> None:
    base = load(make_base("bert", auto=AutoModelForMaskedLM))
    assert base.head_modules == ("bert.pooler", "classifier")
    heads = [build_head(base.model, base.head_modules, size, seed) for seed, size in enumerate((2, 3))]
    singles = []
    for head in heads:
        put_head(base.model, head)
        singles.append(base.model(**batch).logits)
    selection = switch_heads(base.model, heads)
    selection.select(torch.tensor([0, 1, 0, 1, 0, 1]))
    logits = base.model(**batch).logits
    torch.testing.assert_close(logits[::2, :2], singles[0][::2], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(logits[1::2], singles[1][1::2], atol=1e-6, rtol=1e-6)


def test_heads_follow_the_model(make_base) -> None:
    base = load_base(describe_base(resolve_base(str(make_base("bert")))), dtype="bfloat16")
    base.model.train()
    head = build_head(base.model, base.head_modules, 3, 0)
    assert head.state()["classifier.weight"].dtype == torch.bfloat16
    assert head.modules["classifier"].training


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_float32_head_reads_a_bfloat16_body(make_base, kind: str) -> None:
    """It computes what it would of the body's output in float32, and rounds nothing."""
    base = load_base(describe_base(resolve_base(str(make_base(kind)))), dtype="bfloat16")
    head = build_head(base.model, base.head_modules, 3, 0, dtype=torch.float32)
    put_head(base.model, head)
    seen = []
    first = next(iter(head.modules.values()))
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0]), prepend=True)
    logits = base.model(input_ids=torch.tensor([[2, 5, 6, 7]])).logits
    assert seen[0].dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    expected = seen[0].float()
    for place, module in enumerate(head.modules.values()):
        expected = torch.nn.functional.linear(expected.relu() if place else expected, module.weight, module.bias)
    torch.testing.assert_close(logits, expected)
    again = load_head(base.model, base.head_modules, 3, head.state(), dtype=torch.float32)
    assert all(torch.equal(value, again.state()[name]) for name, value in head.state().items())
    assert {tensor.dtype for tensor in again.state().values()} == {torch.float32}


@torch.inference_mode()
@pytest.mark.parametrize(
    "config",
    [
        transformers.ModernBertConfig(
            vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
            pad_token_id=1,
        ),
        transformers.ElectraConfig(
            vocab_size=40, embedding_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=48,
        ),
        transformers.DebertaV2Config(
            vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
        ),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_other_architectures_build_and_switch(config: transformers.PreTrainedConfig, batch: dict) -> None:
    from lorabank.models.bases.loading import find_head_modules

    model = AutoModelForSequenceClassification.from_config(config).eval()
    names = find_head_modules(model, set(), config.model_type)
    heads = [build_head(model, names, size, seed) for seed, size in enumerate((2, 4))]
    put_head(model, heads[0])
    single = model(**batch).logits
    switch_heads(model, heads).select(torch.tensor([0, 1, 1, 0, 0, 1]))
    logits = model(**batch).logits
    torch.testing.assert_close(logits[[0, 3, 4], :2], single[[0, 3, 4]], atol=1e-6, rtol=1e-6)
    assert logits[[1, 2, 5]].isfinite().all()


def test_features_between_two_answers_do_not_meet_the_heads_that_were_chosen(make_base) -> None:
    """A pooler without weights is a part of the head, and features pass through it, over other rows."""
    base = load_base(describe_base(resolve_base(str(make_base("bert", transformers.AutoModelForMaskedLM)))))
    assert "bert.pooler" in base.head_modules
    texts = ["a b c", "d e", "f"]
    expected = extract_features(base.model, base.tokenizer, texts, max_length=8)
    heads = [build_head(base.model, base.head_modules, labels, seed=labels) for labels in (2, 3)]
    forms = [AnswerForm(("a", "b"), 8), AnswerForm(("a", "b", "c"), 8)]
    answerer = HeadAnswerer(base, heads, forms, batch_size=4)
    first = answerer.logits(["a", "b", "c d", "e"], np.array([0, 1, 0, 1]))
    np.testing.assert_array_equal(extract_features(base.model, base.tokenizer, texts, max_length=8), expected)
    torch.testing.assert_close(answerer.logits(["a", "b", "c d", "e"], np.array([0, 1, 0, 1])), first)
    with torch.inference_mode():
        answerer.answer(["a", "b c"], np.array([1, 0]), lambda rows: None, shared=False)
    np.testing.assert_array_equal(extract_features(base.model, base.tokenizer, texts, max_length=8), expected)
