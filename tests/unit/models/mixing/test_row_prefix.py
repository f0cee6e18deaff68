"""Lower layers computed once for a text's feature and its answer: the answers of full passes, and full passes where
anything is unusual."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorabank.models.mixing import row_prefix
from lorabank.models.mixing.row_prefix import RowPrefix
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.models.tasks.padding import padding_of
from tests.unit.models.mixing.test_prefix import TEXTS, count, load, runtime_of

__all__ = ["runtime_of"]

WEIGHTS = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [0.5, -1], [0, 1]], np.float32)
HEADS = np.array([0, 1, 1, 0, 1, 0])


def quiet(runtime: Runtime) -> Runtime:
    """With all that is measured once measured."""
    assert padding_of(runtime.base.model).right
    assert runtime.mixture.mixes
    runtime.features(["x"], 66)
    runtime.forget_features()
    return runtime


def test_answers_are_those_of_full_passes_and_the_lower_layer_runs_once(runtime_of) -> None:
    whole, shared = quiet(runtime_of(reuse=True)), quiet(runtime_of(reuse=False))
    lower, upper = (count(layer) for layer in shared.base.model.bert.encoder.layer)
    np.testing.assert_array_equal(shared.features(TEXTS, 66), whole.features(TEXTS, 66))
    assert (lower["passes"], upper["passes"]) == (2, 2)
    for texts, rows in ((TEXTS, slice(None)), (TEXTS[:3], slice(3))):
        expected = whole.answer(texts, Plan(weights=WEIGHTS[rows]), HEADS[rows])
        found = shared.answer(texts, Plan(weights=WEIGHTS[rows]), HEADS[rows])
        assert found.said == expected.said
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
    assert len(set(expected.probabilities.tolist())) == 3
    assert (lower["passes"], upper["passes"]) == (2, 2 + 3)


def test_texts_that_are_forgotten_or_new_are_computed_in_full(runtime_of) -> None:
    shared = quiet(runtime_of(reuse=False))
    lower = count(shared.base.model.bert.encoder.layer[0])
    shared.features(TEXTS[:4], 66)
    shared.answer([*TEXTS[:3], "new one"], Plan(weights=WEIGHTS[:4]), HEADS[:4])
    assert lower["passes"] == 2
    shared.forget_features()
    shared.answer(TEXTS[:4], Plan(weights=WEIGHTS[:4]), HEADS[:4])
    assert lower["passes"] == 3


def test_what_does_not_fit_is_computed_in_full(runtime_of, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_prefix, "ROW_BYTES", 5 * 32 * 4)  # the shortest texts of one batch
    shared = quiet(runtime_of(reuse=False))
    lower = count(shared.base.model.bert.encoder.layer[0])
    shared.features(["z", "a b c"], 66)
    for texts, passes in ((["z"], 1), (["a b c"], 2)):
        shared.answer(texts, Plan(weights=WEIGHTS[:1]), HEADS[:1])
        assert lower["passes"] == passes


def test_a_model_with_a_way_around_its_layers_is_computed_in_full(make_base) -> None:
    model, plain = load(make_base("bert")), load(make_base("bert"))
    shared = RowPrefix(model, ["bert.encoder.layer.1.attention.self.query"])
    for one in (model, plain):
        bypassed = one.bert.encoder.layer[1]
        inner, embed = bypassed.forward, one.bert.embeddings
        seen: dict[str, torch.Tensor] = {}
        embed.register_forward_hook(lambda _m, _i, out, seen=seen: seen.update(out=out))
        one.bert.encoder.layer[0].register_forward_hook(
            lambda _m, _i, out, seen=seen: seen.update(calls=seen.get("calls", 0) + 1)
        )
        bypassed.forward = lambda h, *a, inner=inner, seen=seen, **k: inner(h + seen["calls"], *a, **k)
    ids = torch.arange(4, 16).reshape(2, 6)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        with shared.keeping():
            model.bert(**inputs)  # the check finds that the layers above see more than the hidden states
        lower = count(model.bert.encoder.layer[0])
        model(**inputs)
    assert lower["passes"] == 1


@pytest.mark.parametrize("change", ["left padding", "wider padding", "token types", "embeddings", "gradients"])
def test_unusual_passes_are_computed_in_full(make_base, change: str) -> None:
    model, plain = load(make_base("bert")), load(make_base("bert"))
    shared = RowPrefix(model, ["bert.encoder.layer.1.attention.self.query"])
    ids = torch.arange(4, 16).reshape(2, 6)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode(), shared.keeping():
        model.bert(**inputs)
    lower = count(model.bert.encoder.layer[0])
    if change == "left padding":
        inputs["attention_mask"] = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    if change == "wider padding":
        inputs = {name: torch.nn.functional.pad(value, (0, 3)) for name, value in inputs.items()}
    if change == "token types":
        inputs["token_type_ids"] = torch.ones_like(ids)
    if change == "embeddings":
        inputs = {"inputs_embeds": model.get_input_embeddings()(ids), "attention_mask": inputs["attention_mask"]}
    with torch.set_grad_enabled(change == "gradients"):
        found, expected = model(**inputs).logits, plain(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert lower["passes"] == 1
