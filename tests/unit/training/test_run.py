"""One adapter from rows to tensors: the same bytes every time, resumed or not, and only the new adapter moves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lorabank.algebra.stack import AdapterStack
from lorabank.algebra.subspaces import subspace_overlap
from lorabank.core.errors import ConfigError
from lorabank.models.bases.loading import describe_base
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.tasks.classification import Classification
from lorabank.training.factor_groups import overlap_report
from lorabank.training.planning import plan_adapter
from lorabank.training.run import train_adapter

ATTENTION = tuple(f"bert.encoder.layer.{i}.attention.self" for i in range(2))
MODULES = {f"{layer}.{part}": (32, 32) for layer in ATTENTION for part in ("query", "value")}
STILL = {"learning_rate": 1e-30, "batch_size": 22, "epochs": 1}
"""One step that moves nothing: what comes out is what training began with."""


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_job_gives_the_same_bytes(train, factors_of) -> None:
    first, second = train(work="a"), train(work="b")
    assert same(factors_of(first), factors_of(second))
    assert first.head_digest == second.head_digest
    other = factors_of(train(work="c", seed=1))
    assert not any(torch.equal(first.factors.A[name], other[f"A {name}"]) for name in MODULES)


def test_it_learns(train, recorder) -> None:
    observer = recorder()
    trained = train(observer, epochs=40, learning_rate=1e-2, batch_size=8, lora_alpha=8.0)
    losses = [values["loss"] for values in observer.values]
    assert sum(losses[-6:]) < 0.4 * sum(losses[:6])
    assert all(bool(b.any()) for b in trained.factors.B.values())


# Six steps an epoch: killed within the first one, at the end of an epoch, right after it, and before the last step.
@pytest.mark.parametrize(
    ("stop_after", "resumed_from"),
    [(3, 2), (18, 16), *(pytest.param(*at, marks=pytest.mark.slow) for at in ((6, 4), (7, 6), (13, 12)))],
)
def test_a_resumed_run_gives_the_bytes_of_an_uninterrupted_one(
    train, factors_of, recorder, stop_after, resumed_from
) -> None:
    whole = train(work="whole", save_steps=2)
    with pytest.raises(KeyboardInterrupt):
        train(recorder(stop_after=stop_after), save_steps=2)
    observer = recorder()
    resumed = train(observer, save_steps=2, resume=True)
    assert len(observer.values) == 18 - resumed_from
    assert resumed.steps == whole.steps == 18
    assert same(factors_of(resumed), factors_of(whole))


def test_a_resumed_run_takes_out_of_the_weight_what_the_run_began_with(train, factors_of, recorder, tmp_path) -> None:
    """Whatever a start would find now: another text in its file, or other signs on another machine."""
    text = tmp_path / "text"
    text.write_text("a b c\nd e\n", encoding="utf-8")
    settings = {"save_steps": 2, "start": "corda", "set": ("mode=kpm", f"text={text}")}
    whole = train(work="whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        train(recorder(stop_after=3), **settings)
    text.write_text("x y z w\nv u\n", encoding="utf-8")
    assert not same(factors_of(train(work="other", **settings)), factors_of(whole))
    assert same(factors_of(train(resume=True, **settings)), factors_of(whole))


def test_every_epoch_has_each_row_once_in_an_order_of_its_own(train, monkeypatch, job) -> None:
    seen: list[tuple[int, ...]] = []
    original = Classification.loss

    def loss(self, model, inputs):
        pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        seen.extend(tuple(ids[mask.bool()].tolist()) for ids, mask in pairs)
        return original(self, model, inputs)

    monkeypatch.setattr(Classification, "loss", loss)
    train(epochs=3)
    epochs = [seen[i : i + 22] for i in (0, 22, 44)]
    rows = sorted((0, *(4 + ord(letter) - ord("a") for letter in text.split()), 2) for text in job().texts)
    assert [sorted(epoch) for epoch in epochs] == [rows] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_resumed_run_with_accumulation(train, factors_of, recorder) -> None:
    settings = {"save_steps": 1, "gradient_accumulation_steps": 4, "epochs": 4}
    whole = train(work="whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        train(recorder(stop_after=4), **settings)
    assert same(factors_of(train(resume=True, **settings)), factors_of(whole))


@pytest.mark.parametrize("damaged", ["trainable.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_falls_back_to_the_older_one(train, factors_of, recorder, tmp_path, damaged) -> None:
    whole = train(work="whole", save_steps=2)
    with pytest.raises(KeyboardInterrupt):
        train(recorder(stop_after=9), save_steps=2)
    file = tmp_path / "work" / "checkpoint-8" / damaged
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    observer = recorder()
    assert same(factors_of(train(observer, save_steps=2, resume=True)), factors_of(whole))
    assert len(observer.values) == 18 - 6


def test_without_a_whole_checkpoint_it_begins_anew(train, factors_of, recorder, tmp_path) -> None:
    whole = train(work="whole", save_steps=2)
    with pytest.raises(KeyboardInterrupt):
        train(recorder(stop_after=5), save_steps=2)
    for step in (2, 4):
        (tmp_path / "work" / f"checkpoint-{step}" / "trainable.safetensors").unlink()
    observer = recorder()
    assert same(factors_of(train(observer, save_steps=2, resume=True)), factors_of(whole))
    assert len(observer.values) == 18


def test_a_resumed_olora_run_gives_the_same_bytes(train, factors_of, recorder, make_adapter) -> None:
    stack = AdapterStack.build({"a": make_adapter(MODULES, 2, 1.0, seed=1)})
    settings = {"earlier": stack, "context": ("a",), "save_steps": 2}
    whole = train(work="whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        train(recorder(stop_after=9), **settings)
    assert same(factors_of(train(resume=True, **settings)), factors_of(whole))


def test_only_the_new_adapter_and_the_head_learn(train, monkeypatch, make_adapter) -> None:
    adapter = make_adapter(MODULES, 2, 1.0, seed=1)
    before = {name: (a.clone(), adapter.B[name].clone()) for name, a in adapter.A.items()}
    learning: set[str] = set()
    original = Classification.loss

    def loss(self, model, inputs):
        learning.update(name for name, parameter in model.named_parameters() if parameter.requires_grad)
        return original(self, model, inputs)

    monkeypatch.setattr(Classification, "loss", loss)
    stack = AdapterStack.build({"a": adapter})
    train(earlier=stack, context=("a",), epochs=1)
    factors = {f"{name}.lora_{letter}" for name in MODULES for letter in "AB"}
    assert learning == factors | {"classifier.weight", "classifier.bias"}
    for name, (a, b) in before.items():
        assert torch.equal(stack.modules[name].A, a)
        assert torch.equal(stack.modules[name].B, b)
        assert torch.equal(adapter.A[name], a)


@pytest.mark.parametrize(("context", "dropout"), [((), 0.0), (("a",), 0.0), (("a", "b"), 0.0), ((), 0.5)])
def test_training_begins_at_the_base_with_its_context(
    job, recorder, save_base, tmp_path, make_adapter, context, dropout
) -> None:
    """The first loss, all rows in one batch, against plain transformers on weights summed by hand.

    Without a dropout of the adapter the base's own is off too.
    """
    from transformers import AutoModelForSequenceClassification

    folder = save_base(tmp_path / "still", hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    base = describe_base(resolve_base(str(folder)))
    adapters = {
        "a": make_adapter(MODULES, 2, 0.5, seed=1),
        "b": make_adapter({f"{ATTENTION[1]}.query": (32, 32)}, 3, 0.5, rslora=True, seed=2),
    }
    the_job = job(on=base, earlier=AdapterStack.build(adapters), context=context, lora_dropout=0.0, **STILL)
    observer = recorder()
    trained = train_adapter(the_job, observer)

    plain = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    plain.classifier.load_state_dict({key.removeprefix("classifier."): value for key, value in trained.head.items()})
    losses = []
    with torch.no_grad():
        for name in context:
            for module in adapters[name].A:
                plain.get_submodule(module).weight += adapters[name].delta(module)
        for text, label in zip(the_job.texts, map(int, the_job.targets), strict=True):
            ids = [0, *(4 + ord(letter) - ord("a") for letter in text.split()), 2]
            logits = plain(input_ids=torch.tensor([ids])).logits
            losses.append(float(F.cross_entropy(logits, torch.tensor([label]))))
    assert observer.values[0]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_tasks_with_one_seed_begin_with_other_factors(train, make_adapter) -> None:
    first = train(work="first", **STILL)
    second = train(work="second", earlier=AdapterStack.build({"first": first.factors}), **STILL)
    for name in MODULES:
        # random rows of 32 numbers overlap by 2/32; equal ones by 1
        assert subspace_overlap(first.factors.A[name], second.factors.A[name]) < 0.4
        assert float(second.factors.B[name].abs().max()) < 1e-20


def test_seqlora_goes_on_with_the_last_adapter(train, make_adapter) -> None:
    old = make_adapter(MODULES, 2, 8.0, rslora=True, seed=1)
    stack = AdapterStack.build({"old": old})
    still = train(earlier=stack, continued="old", strategy="seqlora", lora_alpha=2.0, **STILL)
    for name in MODULES:
        torch.testing.assert_close(still.factors.delta(name), old.delta(name), rtol=1e-5, atol=1e-5)
    moved = train(work="moved", earlier=stack, continued="old", strategy="seqlora", epochs=2)
    assert all(not torch.equal(moved.factors.A[name], old.A[name]) for name in MODULES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"r": 3}, r"of rank 2, not 3"), ({"target_modules": "query"}, "other modules than --target-modules")],
)
def test_seqlora_refuses_another_shape(train, make_adapter, settings, message) -> None:
    stack = AdapterStack.build({"old": make_adapter(MODULES, 2, 8.0, seed=1)})
    with pytest.raises(ConfigError, match=message):
        train(earlier=stack, continued="old", strategy="seqlora", **settings)


def test_the_overlap_report(make_adapter) -> None:
    eye = torch.eye(8)
    new = make_adapter({"m": (3, 8), "n": (3, 8)}, 2, 1.0)
    old = make_adapter({"m": (3, 8), "n": (3, 8)}, 2, 1.0)
    far = make_adapter({"m": (3, 8)}, 2, 1.0)
    new.A.update(m=eye[:2], n=2 * eye[:2])
    old.A.update(m=eye[1:3], n=eye[2:4])  # shares one direction of two in m, none in n
    far.A.update(m=eye[5:7])
    report = overlap_report(new, AdapterStack.build({"old": old, "far": far}))
    assert report["overlap"] == pytest.approx({"old": (0.5 + 0) / 2, "far": 0.0})
    assert report["capacity_left"] == pytest.approx((8 - 5) / 8)  # m holds e0, e1, e2, e5, e6
    assert report["directions_left"] == 8 - 5
    assert report["capacity_by_module"] == pytest.approx({"m": (8 - 5) / 8, "n": (8 - 4) / 8})
    alone = overlap_report(new, None)
    room = {"capacity_left": 0.75, "directions_left": 6, "capacity_by_module": {"m": 0.75, "n": 0.75}}
    assert alone == {"overlap": {}, **room}


def test_long_texts_are_cut_and_told(train, recorder) -> None:
    observer = recorder()
    trained = train(observer, max_length=6, epochs=0.2)
    cut = trained.metrics["rows_cut"]
    assert 0 < cut < 22
    assert f"{cut} of 22 training texts are truncated to 6 tokens" in observer.notices


def test_texts_are_no_longer_than_the_model_can_read(base, job, train) -> None:
    assert train(max_length=4096, epochs=0.2).max_length == 66
    assert plan_adapter(OpenBase(base), job(max_length=4096).config, 2).max_length == 66


def test_the_trainable_size_is_that_of_what_is_trained(base, job, train, factors_of) -> None:
    trained = train(epochs=0.2, r=3)
    plan = plan_adapter(OpenBase(base), job(r=3).config, 2)
    assert plan.parameters == sum(tensor.numel() for tensor in factors_of(trained).values())
    assert plan.target_modules == trained.target_modules


@pytest.mark.parametrize(("accumulation", "epochs"), [(1, 3), (4, 3), (1, 0.5), (4, 1.5)])
def test_the_announced_steps_are_the_steps_made(train, recorder, accumulation: int, epochs: float) -> None:
    observer = recorder()
    trained = train(observer, gradient_accumulation_steps=accumulation, epochs=epochs)
    assert observer.started[0][1] == trained.steps == len(observer.values)
