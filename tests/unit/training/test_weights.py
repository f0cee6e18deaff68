"""Training the weights of the base itself, against plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lorabank.core.errors import DivergedError
from lorabank.models.bases.loading import LoadedBase, load_base
from lorabank.models.bases.resolving import locate_base
from lorabank.models.tasks.heads import build_head
from lorabank.training.job import TrainJob
from lorabank.training.weights import train_weights

CONFIG = {"batch_size": 32, "epochs": 1, "learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.05}


def own_model(job: TrainJob) -> LoadedBase:
    return load_base(job.base.record, tokenizer=job.base.tokenizer, device="cpu", dtype="float32")


def plain_step(job: TrainJob) -> dict[str, torch.Tensor]:
    """All weights after one step of AdamW on all rows, from plain transformers; the head is given its start alone."""
    folder, config = locate_base(job.base.record).path, job.config
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    start = build_head(own_model(job).model, ("classifier",), 2, config.seed).state()
    model.load_state_dict(start, strict=False)
    rows = AutoTokenizer.from_pretrained(folder)(list(job.texts), padding=True, return_tensors="pt")
    wanted = torch.tensor([job.labels.index(target) for target in job.targets])
    logits = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    torch.nn.functional.cross_entropy(logits, wanted).backward()
    named = [(name, one) for name, one in model.named_parameters() if one.grad is not None]
    assert float(torch.nn.utils.clip_grad_norm_([one for _, one in named], config.max_grad_norm)) > 0.05
    undecayed = [one for name, one in named if name.endswith("bias") or "LayerNorm" in name]
    decayed = [one for name, one in named if not (name.endswith("bias") or "LayerNorm" in name)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=config.learning_rate).step()
    return {name: one.detach() for name, one in model.named_parameters()}


@pytest.mark.parametrize("which", ["all", "biases"])
def test_a_step_is_adamw_on_the_chosen_weights(job, recorder, which: str) -> None:
    given = job(lora_dropout=0.0, **CONFIG)
    base, told = own_model(given), recorder()
    before = {name: one.detach().clone() for name, one in base.model.named_parameters()}
    trains = (lambda name: True) if which == "all" else (lambda name: name.endswith(".bias"))
    trained = train_weights(base, given, trains, told)
    assert (trained.steps, trained.rows_cut, len(told.values)) == (1, 0, 1)
    after = dict(base.model.named_parameters())
    assert not any(one.requires_grad or one.grad is not None for one in after.values())
    assert trained.head.keys() == {"classifier.weight", "classifier.bias"}
    moved = {name for name, one in after.items() if name in before and not torch.equal(one, before[name])}
    if which == "biases":
        body = {name for name in moved if not name.startswith("classifier.")}
        assert body
        assert all(name.endswith(".bias") for name in body)
        return
    assert len(moved) > 30
    for name, expected in plain_step(given).items():
        # the first step of Adam is the sign of a gradient: what is next to 0 may go either way
        close = (after[name] - expected).abs() < 2e-5
        assert float(close.float().mean()) > 0.995, name


def test_dropout_is_the_bases_own_where_an_adapters_training_has_it(job, recorder) -> None:
    losses = []
    for dropout in (0.0, 0.1):
        told, given = recorder(), job(lora_dropout=dropout, **CONFIG)
        train_weights(own_model(given), given, lambda name: True, told)
        losses.append(told.values[0]["loss"])
    plain = own_model(job(**CONFIG)).model
    assert plain.config.hidden_dropout_prob > 0
    assert losses[0] != losses[1]


def test_the_loss_falls_and_what_diverges_is_refused(job, recorder) -> None:
    told, given = recorder(), job(epochs=8, learning_rate=3e-3, lora_dropout=0.0)
    train_weights(own_model(given), given, lambda name: True, told)
    losses = [one["loss"] for one in told.values]
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])
    wild = job(epochs=4, learning_rate=1e30, max_grad_norm=0.0)
    with pytest.raises(DivergedError):
        train_weights(own_model(wild), wild, lambda name: True, recorder())
    assert math.isfinite(losses[-1])
