"""What routing keeps of a task, against features that transformers computes one text at a time."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from lorabank.bank.bank import Bank
from lorabank.compose.routers import statistics
from lorabank.compose.routers.evidence import Evidence
from lorabank.compose.routers.grams import of_texts
from lorabank.data.loading import load_task_data
from tests.contract.conftest import Lab


def features(lab: Lab, texts: tuple[str, ...], layer: int = -1) -> np.ndarray:
    """Each text's mean of a hidden state, of length 1."""
    model, tokenizer = AutoModel.from_pretrained(lab.base).eval(), AutoTokenizer.from_pretrained(lab.base)
    with torch.no_grad():
        inputs = [tokenizer(text, return_tensors="pt") for text in texts]
        means = [model(**one, output_hidden_states=True).hidden_states[layer][0].mean(0) for one in inputs]
    return np.stack([torch.nn.functional.normalize(mean, dim=0).double().numpy() for mean in means])


def kept(bank: Path) -> statistics.TaskStatistics:
    opened = Bank.open(bank)
    digest = opened.snapshot().task("one").statistics
    assert digest is not None
    return statistics.TaskStatistics.from_bytes(opened.read_blob(digest))


@pytest.mark.parametrize("maximum", [7, 12])
def test_they_are_of_at_most_so_many_rows_with_the_labels_in_their_proportions(
    lab: Lab, copy, monkeypatch: pytest.MonkeyPatch, maximum: int
) -> None:
    monkeypatch.setattr(statistics, "MOST_ROWS", maximum)
    bank = copy("olora", 0)
    lab.add(bank, "one", keep_samples=4)
    train = load_task_data(lab.settings("one"), labelled=True).train
    assert (len(train), train.labels.count("part0")) == (12, 6)
    every, found = features(lab, train.texts), kept(bank)
    assert found.n == maximum
    means = {rows: every[list(rows)].mean(0) for rows in combinations(range(12), maximum)}
    (chosen,) = (rows for rows, mean in means.items() if np.abs(mean - found.mean).max() < 1e-6)
    assert abs(sum(train.labels[row] == "part0" for row in chosen) - maximum / 2) < 1
    own = every[list(chosen)] - every[list(chosen)].mean(0)
    np.testing.assert_allclose(found.scatter, own.T @ own, atol=1e-6)


def test_lower_layers_and_characters_are_kept_beside_them(lab: Lab, copy) -> None:
    """The base has two layers: a third and two thirds of the depth are both the first one."""
    bank = copy("olora", 0)
    lab.add(bank, "one")
    opened = Bank.open(bank)
    adapter = opened.snapshot().adapter_of("one")
    found = Evidence.from_bytes(opened.read_blob(adapter.objects["routing"]))
    train = load_task_data(lab.settings("one"), labelled=True).train
    every = features(lab, train.texts, layer=1)
    assert (list(found.layers), found.n) == ([1], 12)
    np.testing.assert_allclose(found.layers[1].mean, every.mean(0), atol=1e-6)
    own = every - every.mean(0)
    roots = np.sqrt((own**2).sum(0))
    assert (np.abs(found.layers[1].scatter - own.T @ own) / np.outer(roots, roots)).max() < 5e-5
    counts = of_texts(train.texts)
    np.testing.assert_array_equal(found.grams.buckets, counts.buckets)
    np.testing.assert_allclose(found.grams.counts, counts.counts, rtol=1e-6)
