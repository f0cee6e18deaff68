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
from lorabank.data.loading import load_task_data
from tests.contract.conftest import Lab


def features(lab: Lab, texts: tuple[str, ...]) -> np.ndarray:
    """Each text's mean of the last hidden state, of length 1."""
    model, tokenizer = AutoModel.from_pretrained(lab.base).eval(), AutoTokenizer.from_pretrained(lab.base)
    with torch.no_grad():
        means = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
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
    lab.add(bank, "one")
    train = load_task_data(lab.settings("one"), labelled=True).train
    assert (len(train), train.labels.count("part0")) == (12, 6)
    every, found = features(lab, train.texts), kept(bank)
    assert found.n == maximum
    means = {rows: every[list(rows)].mean(0) for rows in combinations(range(12), maximum)}
    (chosen,) = (rows for rows, mean in means.items() if np.abs(mean - found.mean).max() < 1e-6)
    assert abs(sum(train.labels[row] == "part0" for row in chosen) - maximum / 2) < 1
    own = every[list(chosen)] - every[list(chosen)].mean(0)
    np.testing.assert_allclose(found.scatter, own.T @ own, atol=1e-6)
