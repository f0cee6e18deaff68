"""Class weights: the loss of a batch by hand, parts of it, rows of earlier tasks, and held-out rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

from lorabank.core.shelves import TASK_TYPES
from lorabank.models.bases.resolving import folder_of
from lorabank.models.facts.fisher import fisher_from_bytes
from lorabank.training.loop.class_weights import balanced
from lorabank.training.replaying import MixedTask
from lorabank.training.run import train_adapter
from tests.unit.training.conftest import letters

STILL = {"learning_rate": 1e-30, "epochs": 1, "lora_dropout": 0.0}


def rare(job, work: str = "work", rows: int = 22, **config):
    """A job in which label 1 has 3 rows."""
    made = job(work, rows=rows, **config)
    targets = ["1" if i in (1, 8, 15) else "0" for i in range(rows)]
    return replace(made, targets=targets)


def by_hand(base, trained, texts: list[str], targets: list[str]) -> torch.Tensor:
    """Cross entropy of each row, float64, by plain transformers on the base with the head."""
    model = AutoModelForSequenceClassification.from_pretrained(folder_of(base), num_labels=2).eval()
    model.classifier.load_state_dict({key.removeprefix("classifier."): value for key, value in trained.head.items()})
    losses = []
    with torch.no_grad():
        for name in trained.factors.A:
            model.get_submodule(name).weight += trained.factors.delta(name)
        for text, target in zip(texts, targets, strict=True):
            ids = [0, *(4 + ord(letter) - ord("a") for letter in text.split()), 2]
            logits = model(input_ids=torch.tensor([ids])).logits.double()
            losses.append(F.cross_entropy(logits, torch.tensor([int(target)])))
    return torch.stack(losses)


def test_each_label_counts_the_same() -> None:
    targets = ["a"] * 6 + ["c"] * 2 + ["b"]
    weights = balanced(targets, ("a", "b", "c", "unseen"))
    assert weights.tolist() == pytest.approx([9 / (3 * 6), 9 / (3 * 1), 9 / (3 * 2), 1.0])
    total = Counter({label: float(weights["abc".index(label)]) * targets.count(label) for label in "abc"})
    assert total.total() == pytest.approx(len(targets))
    assert len({round(value, 5) for value in total.values()}) == 1


def test_the_loss_of_a_batch_is_the_weighted_mean_over_its_rows(job, recorder, quiet) -> None:
    observer = recorder()
    made = rare(job, on=quiet, batch_size=22, class_weights="balanced", **STILL)
    trained = train_adapter(made, observer)
    losses = by_hand(quiet, trained, list(made.texts), list(made.targets))
    weights = torch.tensor([22 / (2 * 3) if target == "1" else 22 / (2 * 19) for target in made.targets])
    assert observer.values[0]["loss"] == pytest.approx(float((weights * losses).mean()), rel=1e-5)
    assert abs(float((weights * losses).mean() - losses.mean())) > 1e-3, "weights would not be seen"


def test_accumulated_batches_have_the_gradient_of_the_whole_batch(job, recorder, quiet) -> None:
    """Batches of 11 rows with different numbers of rare labels: their mean is the loss of all 22."""
    settings = {"on": quiet, "class_weights": "balanced", "learning_rate": 1e-3, "epochs": 1, "lora_dropout": 0.0}
    whole = train_adapter(rare(job, work="whole", batch_size=22, **settings), recorder())
    parts = rare(job, work="parts", batch_size=11, gradient_accumulation_steps=2, **settings)
    halves = train_adapter(parts, recorder())
    assert whole.steps == halves.steps == 1
    for name, tensor in whole.head.items():
        torch.testing.assert_close(halves.head[name], tensor, rtol=1e-4, atol=1e-7)


def test_held_out_rows_are_weighed_as_the_rows_of_the_training(job, recorder, quiet) -> None:
    texts, labels = letters(9, seed=5)
    made = rare(job, on=quiet, batch_size=22, class_weights="balanced", eval_every=1, **STILL)
    made = replace(made, held_texts=texts, held_targets=[str(label) for label in labels])
    trained = train_adapter(made, recorder())
    losses = by_hand(quiet, trained, texts, made.held_targets)
    weights = torch.tensor([22 / (2 * 3) if label else 22 / (2 * 19) for label in labels])
    assert trained.curve.held.losses == pytest.approx([float((weights * losses).mean())], rel=1e-5)


def test_without_weights_nothing_changes(job, recorder, quiet) -> None:
    """22 rows, 11 of each label: every weight is 1."""
    one = train_adapter(job(work="a", on=quiet, epochs=1), recorder())
    other = train_adapter(job(work="b", on=quiet, epochs=1, class_weights="balanced"), recorder())
    for name, tensor in one.head.items():
        torch.testing.assert_close(other.head[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [0, 1])
def test_a_saving_with_a_loss_of_its_own_weighs_too(job, recorder, quiet, alpha: int) -> None:
    """Nothing is dropped, so that two passes agree and their divergence is 0."""
    saving = {"savings": ("hiddenkey",), "set": (f"alpha={alpha}", "key_dropout=0", "hidden_dropout=0")}
    losses = []
    for work, settings in (("plain", {}), ("saved", saving)):
        observer = recorder()
        made = rare(job, work, on=quiet, batch_size=22, class_weights="balanced", **STILL, **settings)
        train_adapter(made, observer)
        losses.append(observer.values[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(("strategy", "role"), [("ewc", "importance"), ("online-lora", "importance in the stream")])
def test_importances_are_of_the_likelihood_whatever_the_weights(
    job, recorder, quiet, strategy: str, role: str
) -> None:
    """Of a model that does not move; the hard rows of a stream are the same ones too."""
    found = []
    for weights in ("none", "balanced"):
        settings = {"strategy": strategy, "class_weights": weights, "set": ("online-lora.hard_rows=4",)}
        made = rare(job, weights, on=quiet, batch_size=22, **(settings | STILL))
        found.append(fisher_from_bytes(train_adapter(made, recorder()).objects[role]))
    assert any(bool(value.any()) for value in found[0].B.values())
    for name, value in found[0].B.items():
        torch.testing.assert_close(found[1].B[name], value, rtol=1e-4, atol=0)


def test_rows_of_earlier_tasks_count_one() -> None:
    """Behind the own rows stand those of other tasks, whose labels have other numbers."""
    task = MixedTask(TASK_TYPES.load("SEQ_CLS")(), None, torch.tensor([0.5, 2.0]), own=3)
    found = task.weight(torch.tensor([1, 0, 1, 4, 0]), torch.tensor([0, 1, 2, 3, 7]))
    assert found.tolist() == [2.0, 0.5, 2.0, 1.0, 1.0]
    assert MixedTask(TASK_TYPES.load("SEQ_CLS")(), None).weight(torch.tensor([4]), torch.tensor([0])) == 1.0
