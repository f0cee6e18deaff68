"""Texts in, labels out, in every kind of state: against plain transformers, one text at a time."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from lorabank.algebra.factors import FactorShape, LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.models.answering.base import AnswerForm
from lorabank.models.answering.head_answers import HeadAnswerer
from lorabank.models.bases.loading import describe_base, load_base
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.gates.attention_token import Selector
from lorabank.models.mixing import kept_features
from lorabank.models.mixing.resident_stack import ResidentStack
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.models.mixing.slot_filling import SlotFiller
from lorabank.models.tasks.heads import build_head

MODULES = {f"bert.encoder.layer.{i}.attention.self.{part}": (32, 32) for i in range(2) for part in ("query", "value")}
FORMS = [AnswerForm(("0", "1"), 66), AnswerForm(("0", "1", "2", "3"), 66)]
TEXTS = ["a b c", "z", "q w e r t y", "n o", "m m m m m m m m m m", "h i j"]


@pytest.fixture
def folder(make_base):
    return make_base("bert")


@pytest.fixture
def adapters(make_adapter) -> dict[str, LoraFactors]:
    some = {module: shape for module, shape in MODULES.items() if "query" in module}
    return {"a": make_adapter(MODULES, 2, 0.8, seed=1), "b": make_adapter(some, 3, 0.5, rslora=True, seed=2)}


@pytest.fixture
def runtime(folder, adapters) -> Runtime:
    base = load_base(describe_base(resolve_base(str(folder))), device="cpu", dtype="float32")
    heads = [build_head(base.model, base.head_modules, labels, seed) for labels, seed in ((2, 1), (4, 2))]
    answerer = HeadAnswerer(base, heads, FORMS, batch_size=4)
    return Runtime(base, AdapterStack.build(adapters), answerer, batch_size=4)


def plainly(folder, runtime: Runtime, adapters: dict[str, LoraFactors], weights, head: int, text: str) -> Tensor:
    """Probabilities from a model of its own with ``W + sum_k w_k s_k B_k A_k``."""
    from transformers import AutoModelForSequenceClassification

    classifier = runtime.base.model.classifier.options[head]
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=classifier.out_features).eval()
    model.classifier.load_state_dict(classifier.state_dict())
    ids = [0, *(4 + ord(letter) - ord("a") for letter in text.split()), 2]
    with torch.no_grad():
        for w, factors in zip(weights, adapters.values(), strict=True):
            for module in factors.A:
                model.get_submodule(module).weight += float(w) * factors.delta(module)
        return model(input_ids=torch.tensor([ids])).logits.softmax(-1)[0]


def check(found, expected: list[Tensor]) -> None:
    assert found.said == tuple(str(int(one.argmax())) for one in expected)
    np.testing.assert_allclose(found.probabilities, [float(one.max()) for one in expected], atol=1e-5)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, 1.0), (-0.5, 1.5)])
def test_one_state_for_all_texts(folder, runtime, adapters, weights) -> None:
    found = runtime.answer(TEXTS, Plan(weights=np.array(weights, np.float32)), 1)
    check(found, [plainly(folder, runtime, adapters, weights, 1, text) for text in TEXTS])


def test_the_mode_is_set_only_where_it_is_another(folder, runtime, adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, model = Plan(weights=np.ones(2, np.float32)), runtime.base.model
    assert not any(module.training for module in model.modules())
    model.train()
    found = runtime.answer(TEXTS, plan, 1)
    expected = [plainly(folder, runtime, adapters, (1, 1), 1, text) for text in TEXTS]
    check(found, expected)
    assert any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    monkeypatch.setattr(model, "train", Mock())
    check(runtime.answer(TEXTS, plan, 1), expected)
    model.train.assert_not_called()


def test_a_state_and_a_head_for_each_text(folder, runtime, adapters) -> None:
    weights = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [0.5, -1], [0, 1]], np.float32)
    heads = np.array([0, 1, 1, 0, 1, 0])
    found = runtime.answer(TEXTS, Plan(weights=weights), heads)
    check(
        found,
        [plainly(folder, runtime, adapters, w, h, text) for w, h, text in zip(weights, heads, TEXTS, strict=True)],
    )


@pytest.mark.parametrize("interrupted", [False, True])
def test_equal_weights_over_slots_that_changed_hands_are_another_state(
    folder, make_adapter, monkeypatch, interrupted: bool
) -> None:
    """Slots 0 and 2 answer twice with the same weights, and hold other adapters the second time."""
    adapters = {name: make_adapter(MODULES, 2, 0.8, seed=seed) for seed, name in enumerate("abcd")}
    shapes = {
        name: {module: FactorShape(2, 32, 32, factors.scaling[module]) for module in factors.A}
        for name, factors in adapters.items()
    }
    three = 3 * sum(4 * 2 * 64 for _ in MODULES)
    stack = ResidentStack.reserve(shapes, adapters.__getitem__, device="cpu", dtype=torch.float32, max_bytes=three)
    base = load_base(describe_base(resolve_base(str(folder))), device="cpu", dtype="float32")
    heads = [build_head(base.model, base.head_modules, 2, 1)]
    runtime = Runtime(base, stack, HeadAnswerer(base, heads, FORMS[:1], batch_size=4), batch_size=4)
    stack.place(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    for chosen in ("ac", "bc", "dc"):  # d takes the slot of a, which was used longest ago
        weights = np.array([[float(name == own) for name in adapters] for own in chosen], np.float32)
        if chosen == "bc":
            stack.place(torch.from_numpy(weights))
            continue
        if chosen == "dc" and interrupted:
            with monkeypatch.context() as patched:
                patched.setattr(SlotFiller, "fill", Mock(side_effect=KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    runtime.answer(TEXTS[:2], Plan(weights=weights), 0)
        found = runtime.answer(TEXTS[:2], Plan(weights=weights), 0)
        rows = zip(weights, TEXTS[:2], strict=True)
        check(found, [plainly(folder, runtime, adapters, w, 0, text) for w, text in rows])
    assert stack.moved == 1


def test_one_adapter_of_its_own(folder, runtime, adapters, make_adapter) -> None:
    other = make_adapter(dict.fromkeys(adapters["b"].A, (32, 32)), 5, 1.0, seed=7)
    found = runtime.answer(TEXTS, Plan(factors=other), 0)
    check(found, [plainly(folder, runtime, {"x": other}, (1.0,), 0, text) for text in TEXTS])


def test_a_selector_whose_attention_is_known(folder, runtime, adapters) -> None:
    """All scores zero: every adapter gets 1 / (K + 1), on every module that it has."""
    states = (("a",),)
    found = runtime.answer(TEXTS, Plan(gate=Selector(runtime.states(states)), states=states), 0)
    check(found, [plainly(folder, runtime, adapters, (0.5, 0.0), 0, text) for text in TEXTS])


def test_every_form_cuts_texts_to_its_own_length(folder, runtime, adapters) -> None:
    long = " ".join("qwertyuiop" * 3)
    short = AnswerForm(("0", "1"), 6)
    runtime.answerer.forms = (short, FORMS[1])
    plan = Plan(weights=np.zeros(2, np.float32))
    found = runtime.answer([long, long], plan, np.array([0, 1]))
    check(
        found, [plainly(folder, runtime, adapters, (0, 0), head, text) for head, text in ((0, "q w e r"), (1, long))]
    )


def test_the_loss_is_the_mean_cross_entropy_of_each_rows_own_head(folder, runtime, adapters) -> None:
    heads, targets = np.array([0, 1, 1]), ["1", "3", "0"]
    runtime.enter(Plan(weights=np.array([1, 0], np.float32)))
    found = runtime.loss(TEXTS[:3], targets, heads)
    rows = zip(heads.tolist(), targets, TEXTS[:3], strict=True)
    expected = [-plainly(folder, runtime, adapters, (1, 0), head, text)[int(gold)].log() for head, gold, text in rows]
    assert float(found.detach()) == pytest.approx(float(sum(expected)) / 3, abs=1e-5)


def test_states_do_not_leak_into_each_other(runtime) -> None:
    base = Plan(weights=np.zeros(2, np.float32))
    before = runtime.answer(TEXTS, base, 0)
    runtime.answer(TEXTS, Plan(weights=np.ones((6, 2), np.float32)), np.ones(6, np.int64))
    states = (("a",), ("b",))
    runtime.answer(TEXTS, Plan(gate=Selector(runtime.states(states)), states=states), 1)
    after = runtime.answer(TEXTS, base, 0)
    assert np.array_equal(after.probabilities, before.probabilities)
    assert after.said == before.said


def test_features_are_those_of_the_bare_base_in_any_state(runtime) -> None:
    expected = runtime.features(TEXTS, 66)
    runtime.answer(TEXTS[:2], Plan(weights=np.ones(2, np.float32)), 0)
    again = runtime.features(TEXTS[::-1], 66)  # other texts, so they are computed
    np.testing.assert_allclose(again[::-1], expected, atol=1e-6)


def test_features_are_computed_once(runtime, monkeypatch) -> None:
    first = runtime.features(TEXTS, 66)
    monkeypatch.setattr(type(runtime.base.model.base_model), "forward", lambda *_, **__: pytest.fail("ran again"))
    np.testing.assert_array_equal(runtime.features(list(TEXTS), 66), first)


def test_each_text_passes_through_the_base_once(runtime, monkeypatch) -> None:
    """Lists that overlap, and one that repeats a text: rows of the forward passes add up to the different texts."""
    body = runtime.base.model.base_model
    runtime.features(["x x", "x"], 66)  # what is measured once for a model passes texts of its own
    passed = []
    run = body.forward
    monkeypatch.setattr(body, "forward", lambda **inputs: passed.append(len(inputs["input_ids"])) or run(**inputs))
    alone = {text: runtime.features([text], 66)[0] for text in TEXTS[:2]}
    found = runtime.features([TEXTS[3], TEXTS[0], TEXTS[3], TEXTS[1], TEXTS[2]], 66)
    assert sum(passed) == 4
    np.testing.assert_array_equal(found[1], alone[TEXTS[0]])
    np.testing.assert_array_equal(found[3], alone[TEXTS[1]])
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[4])
    runtime.features([], 66)
    runtime.features(TEXTS[:2], 6)  # cut to another length, so it may be another text
    assert sum(passed) == 6


def test_features_are_kept_up_to_a_limit(runtime, monkeypatch) -> None:
    """Those of the first three texts fit: the others pass through the base at each call, and no result is another."""
    body, run, passed = runtime.base.model.base_model, runtime.base.model.base_model.forward, []
    expected = runtime.features(TEXTS, 66)
    monkeypatch.setattr(kept_features, "FEATURE_BYTES", 3 * (expected[0].nbytes + kept_features._ENTRY) + 8)
    runtime.forget_features()
    monkeypatch.setattr(body, "forward", lambda **inputs: passed.append(len(inputs["input_ids"])) or run(**inputs))
    totals = []
    for _ in range(3):
        np.testing.assert_allclose(runtime.features(TEXTS, 66), expected, atol=1e-6)
        totals.append(sum(passed))
    assert totals == [len(TEXTS), 2 * len(TEXTS) - 3, 3 * len(TEXTS) - 6]


def test_the_base_is_never_written_to(runtime, folder) -> None:
    from transformers import AutoModelForSequenceClassification

    runtime.answer(TEXTS, Plan(weights=np.ones(2, np.float32)), 0)
    runtime.answer(TEXTS, Plan(weights=np.ones((6, 2), np.float32)), 1)
    original = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    for module in MODULES:
        assert torch.equal(runtime.base.model.get_submodule(module).base.weight, original.get_submodule(module).weight)
