"""Counts of a text's grams and naive Bayes on them, against the definition."""

from __future__ import annotations

import math
import zlib
from collections import Counter

import numpy as np
import pytest

from lorabank.compose.routers.grams import NaiveBayes, of_text, of_texts

TEXTS = ["", "a", "win cash now" * 50, "Tür 你好 Straße", "\ud800 ok \U0001f600\U0001f600", "\x00\n\t", "zzz qqq"]


@pytest.mark.parametrize("text", TEXTS)
def test_each_gram_is_counted_in_the_bucket_of_its_crc(text: str) -> None:
    padded = f" {text[:400]} "
    grams = [padded[i : i + n] for n in (1, 2, 3) for i in range(len(padded) - n + 1)]
    counts = Counter(zlib.crc32(gram.encode("utf-8", "surrogatepass")) % 2**15 for gram in grams)
    found = of_text(text)
    assert found.buckets.tolist() == sorted(counts)
    assert found.counts.tolist() == pytest.approx([math.log1p(counts[b]) for b in sorted(counts)], rel=1e-15)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_by_itself_is_bounded_closely_and_scored_as_in_a_batch(text: str) -> None:
    dice = np.random.default_rng(0)
    bayes = NaiveBayes([of_texts(dice.choice(TEXTS, 4).tolist()) for _ in range(30)], 0.1, 3.0)
    alone, exact = bayes.of([text]), bayes.of([text, "another"]).every[0]
    bounds, one = alone.bounds()[0], np.array([0])
    assert (bounds >= exact).all()
    np.testing.assert_allclose(bounds, exact, rtol=1e-4)  # a few hundred roundings of float32
    np.testing.assert_allclose([alone.of(t, one)[0] for t in range(30)], exact, rtol=1e-12)
