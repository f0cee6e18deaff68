"""Rows of several tasks in one run: each under its own task's form and head, against a plain pass per row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lorabank.models.bases.loading import describe_base, load_base
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.tasks.causal_lm import CausalLM
from lorabank.models.tasks.classification import Classification
from lorabank.models.tasks.heads import build_head
from lorabank.models.tasks.task_types import Examples
from lorabank.training.job import Replayed
from lorabank.training.replaying import MixedTask, add_replayed, keep_heads, kept_rows, memory_of
from lorabank.training.run import train_adapter

STILL = {"learning_rate": 1e-30, "epochs": 1, "lora_dropout": 0.0}
"""Steps that move nothing: what is measured is the loss at the start."""


def letters(text: str) -> list[int]:
    return [0, *(4 + ord(letter) - ord("a") for letter in text.split()), 2]


def stored_head(labels: int, seed: int) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(labels, 32, generator=chance), torch.randn(labels, generator=chance)
    return {"classifier.weight": weight, "classifier.bias": bias}


def replayed(texts: list[str], targets: list[str], labels: tuple[str, ...], seed: int = 0, **form: Any) -> Replayed:
    head = stored_head(len(labels), seed) if form.get("head") is None else form["head"]
    return Replayed(texts, targets, labels, form.get("template"), form.get("max_length", 66), head)


OLD = replayed(["a b", "x y z", "m"], ["z", "y", "x"], ("x", "y", "z"), seed=1)
OLDER = replayed(["q r s t"], ["no"], ("no", "yes"), seed=2)


def plain_logits(folder: Any, text: str, head: dict[str, torch.Tensor]) -> torch.Tensor:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(head["classifier.bias"])).eval()
    model.classifier.load_state_dict({name.rpartition(".")[2]: value for name, value in head.items()})
    with torch.no_grad():
        return model(input_ids=torch.tensor([letters(text)])).logits[0]


def test_a_replayed_row_is_judged_by_its_own_frozen_head(base) -> None:
    loaded = load_base(base, device="cpu", dtype=torch.float32)
    loaded.model.eval()
    own = build_head(loaded.model, loaded.head_modules, 4, seed=3)
    mixed = MixedTask(Classification(), keep_heads(loaded.model, loaded.head_modules, own, [OLD, OLDER]))
    texts, targets, labels = ["b c d", "w"], ["d", "a"], ("a", "b", "c", "d")
    new = Classification().encode(loaded.tokenizer, texts, targets, labels=labels, template=None, max_length=66)
    every = add_replayed(Classification(), loaded.tokenizer, new, [OLD, OLDER])
    assert len(every.rows) == len(every.lengths) == 6
    rows = [every.rows[i] for i in (3, 0, 5, 1, 4, 2)]
    loss = mixed.loss(loaded.model, mixed.collate(loaded.tokenizer, rows))
    parts = [(texts, targets, labels, own.state())]
    parts += [(task.texts, task.targets, task.labels, task.head) for task in (OLD, OLDER)]
    expected = [
        F.cross_entropy(plain_logits(base.name, text, head)[None], torch.tensor([of.index(target)]))
        for some, aims, of, head in parts
        for text, target in zip(some, aims, strict=True)
    ]
    assert float(loss.detach()) == pytest.approx(float(torch.stack(expected).mean()), abs=1e-5)
    loss.backward()
    options = loaded.model.classifier.options
    assert all(bool(p.grad.any()) for p in options[0].parameters())
    assert all(p.grad is None and not p.requires_grad for option in options[1:] for p in option.parameters())


def test_without_replay_the_task_is_the_task_type_s_own() -> None:
    class Model(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return type("Out", (), {"logits": torch.tensor([[2.0, 0.0], [0.0, 1.0]])})

    inputs = {"input_ids": torch.zeros(2, 3), "attention_mask": torch.ones(2, 3), "labels": torch.tensor([0, 0])}
    expected = (torch.log1p(torch.exp(torch.tensor(-2.0))) + torch.log1p(torch.exp(torch.tensor(1.0)))) / 2
    assert float(MixedTask(Classification(), None).loss(Model(), inputs)) == pytest.approx(float(expected))


@pytest.fixture
def without_dropout(make_base) -> Any:
    folder = make_base("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return describe_base(resolve_base(str(folder)))


@pytest.mark.parametrize("strategy", ["replay", "joint"])
def test_training_begins_with_the_mean_loss_of_all_rows(job, recorder, without_dropout, strategy: str) -> None:
    settings = {"strategy": strategy, "rows": 4, "batch_size": 64, "on": without_dropout, **STILL}
    alone = train_adapter(job(work="alone", **settings), recorder())
    both = train_adapter(replace(job(work="both", **settings), replayed=(OLD, OLDER)), recorder())
    folder = without_dropout.name
    old = [
        F.cross_entropy(plain_logits(folder, text, task.head)[None], torch.tensor([task.labels.index(target)]))
        for task in (OLD, OLDER)
        for text, target in zip(task.texts, task.targets, strict=True)
    ]
    expected = (4 * alone.metrics["final_loss"] + float(torch.stack(old).sum())) / 8
    assert both.metrics["final_loss"] == pytest.approx(expected, abs=1e-5)
    assert both.metrics["rows_replayed"] == 4
    assert "rows_replayed" not in alone.metrics
    assert both.head.keys() == alone.head.keys()  # the new task's head alone is kept
    assert both.head["classifier.weight"].shape == (2, 32)


def test_replayed_rows_are_learnt(job, recorder) -> None:
    """Six of the ten rows are old ones, so the mean loss can only halve if theirs falls too."""
    old = replayed(["a b c"] * 6, ["z"] * 6, ("x", "y", "z"), seed=1)
    settings = {"epochs": 30, "learning_rate": 1e-2, "batch_size": 32, "rows": 4, "strategy": "joint"}
    observer = recorder()
    train_adapter(replace(job(**settings), replayed=(old,)), observer)
    assert observer.values[-1]["loss"] < 0.5 * observer.values[0]["loss"]


@pytest.fixture
def language_model(make_language_model) -> Any:
    return describe_base(resolve_base(str(make_language_model("llama"))))


def test_a_language_model_asks_each_row_in_its_task_s_form(language_model) -> None:
    loaded = load_base(language_model, device="cpu", dtype=torch.float32)
    tokenizer, kind = loaded.tokenizer, CausalLM()
    new = kind.encode(tokenizer, ["2+2"], ["4"], labels=(), template=None, max_length=64)
    labelled = replayed(["fine"], ["good"], ("good", "bad"), template="{text} Is it good, bad? Answer:", head={})
    every = add_replayed(kind, tokenizer, new, [labelled])
    mixed = MixedTask(kind, None)
    loss = mixed.loss(loaded.model.eval(), mixed.collate(tokenizer, every.rows))

    def terms(prompt: str, answer: str) -> torch.Tensor:
        before = [0, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        behind = [*tokenizer(answer, add_special_tokens=False)["input_ids"], 2]
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([before + behind])).logits[0, len(before) - 1 : -1]
        return -logits.log_softmax(-1)[range(len(behind)), behind]

    expected = torch.cat([terms("2+2", "4"), terms("fine Is it good, bad? Answer:", " good")]).mean()
    assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-5)


def test_replayed_rows_of_which_none_fits_are_left_out(language_model) -> None:
    tokenizer = load_base(language_model, device="cpu", dtype=torch.float32).tokenizer
    new = CausalLM().encode(tokenizer, ["2+2"], ["4"], labels=(), template=None, max_length=64)
    long = replayed(["why"], ["because " * 40], (), max_length=64, head={})
    some = replayed(["who", "why"], ["me", "because " * 40], (), max_length=64, head={})
    every = add_replayed(CausalLM(), tokenizer, new, [long, some])
    assert [row["heads"] for row in every.rows] == [0, 2]


def test_own_counts_are_those_of_the_new_task() -> None:
    own = Examples(({"ids": [0, 5, 2], "label": 0},), (3,), cut=1, dropped=2)

    class Words:
        def encode(self, *args: Any, **settings: Any) -> Examples:
            return Examples(({"ids": [0, 2], "label": 1},), (2,), cut=1)

    every = add_replayed(Words(), None, own, [OLD])  # type: ignore[arg-type]
    assert (every.cut, every.dropped) == (1, 2)
    assert list(every.lengths) == [3, 2]


def test_every_token_of_an_answer_is_a_term_of_its_row(language_model) -> None:
    loaded = load_base(language_model, device="cpu", dtype=torch.float32)
    kind, seen = CausalLM(), []
    new = kind.encode(loaded.tokenizer, ["2+2", "1+1"], ["4", "two"], labels=(), template=None, max_length=64)
    old = replayed(["who are they"], ["we do not know"], (), head={})
    every = add_replayed(kind, loaded.tokenizer, new, [old])
    (task,) = memory_of(every, [old], heads=False)
    assert (task.head, list(task.rows)) == (None, [2])
    mixed = MixedTask(kind, None)
    batch = mixed.collate(loaded.tokenizer, [every.rows[i] for i in (2, 0, 1)])

    def each(logits: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows.tolist())
        return F.cross_entropy(logits, labels, reduction="none")

    found = mixed.mean(each, loaded.model.eval(), batch)
    assert float(found.detach()) == pytest.approx(float(mixed.loss(loaded.model, batch).detach()), abs=1e-6)
    terms = [len(every.rows[i]["completion"]) for i in range(3)]
    assert seen == [[2] * terms[2] + [0] * terms[0] + [1] * terms[1]]


def test_kept_rows_are_found_among_those_that_fit(language_model) -> None:
    tokenizer = load_base(language_model, device="cpu", dtype=torch.float32).tokenizer
    texts, targets = ["a", "b", "c", "d"], ["one", "because " * 40, "three", "four"]
    some = CausalLM().encode(tokenizer, texts, targets, labels=(), template=None, max_length=64)
    assert some.dropped == 1
    assert list(kept_rows(some, [3, 1, 0])) == [2, 0]
