"""A row of a batch gets its own adapters, wherever the model keeps its rows; else one state is passed at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lorabank.algebra.stack import AdapterStack
from lorabank.models.answering.base import Answers
from lorabank.models.bases.loading import LoadedBase
from lorabank.models.mixing.mixture import Mixture
from lorabank.models.mixing.per_sample import Routes
from lorabank.models.mixing.places import Place, UnplacedError, find_places
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.models.tasks.encoding import pad_batch
from lorabank.models.tasks.padding import padding_of, row_batches
from tests.unit.models.odd_models import CLASSIFIERS, DECODERS, ENCODER_DECODERS, TOKENIZER, USUAL, tiny, words

LENGTHS = (9, 2, 13, 9, 5, 17, 2, 9)
ROWS = words(*LENGTHS)
READ = torch.tensor(words(*[6] * 8, seed=1))
STATES = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 1, 2, 0]]
STATES[3, 1], STATES[5] = 0.5, 0
FORMS = ("masked", "segments", "stacked")
NOT_KEPT = {"DebertaV2", "SwitchTransformersForConditionalGeneration", "MambaForCausalLM"}
"""A table of positions, experts, and a weight that is used without its module."""
EVERY = CLASSIFIERS | DECODERS | ENCODER_DECODERS


def linear(model: Any) -> dict[str, nn.Linear]:
    """Every linear layer but the one that makes words."""
    modules = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    return {name: m for name, m in modules.items() if m is not model.get_output_embeddings()}


@pytest.fixture
def make_mixture(make_adapter):
    """A shared model between adapters, put back afterwards."""
    made: list[Mixture] = []

    def make(name: str) -> Mixture:
        model = tiny(name)
        padding_of(model)  # of the base, as a runtime measures it
        shapes = {name: tuple(m.weight.shape) for name, m in linear(model).items()}
        stack = AdapterStack.build({f"t{k}": make_adapter(shapes, k + 1, 1.0, seed=k) for k in range(3)})
        made.append(Mixture(model, stack))
        return made[-1]

    yield make
    for mixture in made:
        mixture.detach()


def logits(model: Any, rows: list[int]) -> Tensor:
    """Of some of `ROWS` in one batch."""
    more = {"decoder_input_ids": READ[rows]} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        found: Tensor = model(**pad_batch(TOKENIZER, [ROWS[i] for i in rows]), **more).logits
    return found


def merged(model: Any, mixture: Mixture) -> list[Tensor]:
    """Each row by itself, its state merged into the weights."""
    found = []
    for i in range(len(ROWS)):
        mixture.merge(torch.from_numpy(STATES[i]))
        found.append(logits(model, [i])[0])
    return found


def check_same(found: Tensor, alone: Tensor) -> None:
    """The same but for float32's rounding, which grows with the logits; another adapter would move them whole."""
    torch.testing.assert_close(found, alone, atol=1e-3 * max(1.0, float(alone.abs().max())), rtol=0)


@pytest.mark.by_turns
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", sorted(EVERY.keys() - NOT_KEPT))
def test_each_row_has_its_own_adapters_in_batches_of_every_size(name, form, make_mixture, monkeypatch) -> None:
    monkeypatch.setattr(Routes, "costs", lambda self, tokens: {form: 0.0})
    model, mixture = tiny(name), make_mixture(name)
    alone = merged(model, mixture)
    assert mixture.mixes
    for size in range(1, 9):
        for rows in row_batches(model, LENGTHS, size):
            mixture.per_sample(torch.from_numpy(STATES[rows]))
            found = logits(model, rows)
            for k, i in enumerate(rows):
                check_same(found[k, : len(alone[i])], alone[i])


@pytest.mark.parametrize("name", sorted(NOT_KEPT))
def test_a_model_that_keeps_no_rows_takes_one_state_at_a_time(name, make_mixture) -> None:
    """Also in batches of two, four and eight, which divide what is no dimension of rows."""
    model, mixture = tiny(name), make_mixture(name)
    alone = merged(model, mixture)
    assert not mixture.mixes
    for size in range(2, 9):
        with pytest.raises(UnplacedError, match="apart"):
            mixture.per_sample(torch.from_numpy(STATES[:size]))
    if name == "MambaForCausalLM":
        return  # an adapter on the weight alone is lost, unless it is merged
    same = [0, 7]  # one state, whatever the inputs are
    mixture.per_sample(torch.from_numpy(STATES[same]))
    found = logits(model, same)
    for k, i in enumerate(same):
        check_same(found[k, : len(alone[i])], alone[i])


def test_where_rows_are(make_mixture) -> None:
    for name in USUAL:
        places = find_places(tiny(name), linear(tiny(name)))
        assert places
        assert set(places.values()) == {Place(0)}
    longformer = find_places(tiny("Longformer"), linear(tiny("Longformer")))
    assert longformer
    assert longformer["longformer.encoder.layer.0.attention.self.query"] == Place(1)
    assert longformer["longformer.encoder.layer.0.intermediate.dense"] == Place(0)


class _Flat(nn.Module):
    """Rows and tokens in one dimension, rows first or tokens first, or rows the other way round."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, s, d = x.shape
        if self.how == "tokens first":
            return self.inner(x.transpose(0, 1).reshape(n * s, d)).view(s, n, d).transpose(0, 1)
        if self.how == "turned":
            return self.inner(x.flip(0)).flip(0)
        return self.inner(x.reshape(n * s, d)).view(n, s, d)


@pytest.mark.parametrize(
    ("how", "place"), [("rows first", Place(0, block=True)), ("tokens first", None), ("turned", None)]
)
def test_rows_and_tokens_in_one_dimension(how, place, monkeypatch) -> None:
    model = tiny.__wrapped__("Bert")
    model.bert.encoder.layer[1].output.LayerNorm = nn.Sequential(nn.Linear(32, 4), _Flat(how), nn.Linear(4, 32))
    found = find_places(model, {"inner": model.bert.encoder.layer[1].output.LayerNorm[1].inner})
    assert found == (None if place is None else {"inner": place})


def test_the_input_of_another_number_of_rows_is_refused() -> None:
    with pytest.raises(UnplacedError, match=r"3 rows, a module's input is \(6, 4, 8\)"):
        Place(0).by_rows(torch.zeros(6, 4, 8), 3)
    with pytest.raises(UnplacedError):
        Place(0, block=True).by_rows(torch.zeros(7, 8), 3)
    with pytest.raises(UnplacedError):
        Place(1).by_rows(torch.zeros(3, 8), 3)


class _Logits:
    """Answers with the logits themselves; the batches are `ROWS`' own."""

    forms = ()
    generates = False

    def __init__(self, model: Any) -> None:
        self._model = model
        self.batches: list[list[int]] = []

    def answer(self, texts: list[str], heads: Any, enter: Any, *, shared: bool) -> Answers:
        asked = [int(text) for text in texts]
        said = [""] * len(texts)
        for rows in row_batches(self._model, [LENGTHS[i] for i in asked], 8):
            enter(rows)
            self.batches.append([asked[k] for k in rows])
            for k, found in zip(rows, logits(self._model, self.batches[-1]), strict=True):
                said[k] = " ".join(f"{value:.4f}" for value in found.flatten()[:8].tolist())
        return Answers(tuple(said), np.ones(len(texts), np.float32))


def runtime_of(name: str, make_adapter, notices: list[str]) -> Runtime:
    model = tiny.__wrapped__(name)
    shapes = {name: tuple(m.weight.shape) for name, m in linear(model).items()}
    stack = AdapterStack.build({f"t{k}": make_adapter(shapes, k + 1, 1.0, seed=k) for k in range(3)})
    base = LoadedBase(model, TOKENIZER, (), None)
    return Runtime(base, stack, _Logits(model), batch_size=8, notice=notices.append)


def numbers(answers: Answers) -> np.ndarray:
    return np.array([[float(word) for word in said.split()] for said in answers.said])


@pytest.mark.parametrize("name", ["Bert", "Longformer", *sorted(NOT_KEPT)])
def test_routed_texts_are_answered_as_one_by_one(name, make_adapter) -> None:
    notices: list[str] = []
    runtime = runtime_of(name, make_adapter, notices)
    texts = [str(i) for i in range(8)]
    alone = np.concatenate(
        [numbers(runtime.answer([text], Plan(weights=STATES[i : i + 1]), 0)) for i, text in enumerate(texts)]
    )
    for size in range(2, 9):
        found = numbers(runtime.answer(texts[:size], Plan(weights=STATES[:size]), 0))
        np.testing.assert_allclose(found, alone[:size], atol=2e-3)
    assert len(notices) == (name in NOT_KEPT)


def test_what_is_found_in_the_middle_is_answered_anew(make_adapter, monkeypatch) -> None:
    """A module that the first look did not see: its first pass with rows of several states tells."""
    runtime = runtime_of("Bert", make_adapter, [])
    texts = [str(i) for i in range(8)]
    expected = numbers(runtime.answer(texts, Plan(weights=STATES), 0))
    late = runtime_of("Bert", make_adapter, notices := [])
    assert late.mixture.mixes
    late.mixture._places.popitem()  # as if no pass had gone through it
    np.testing.assert_allclose(numbers(late.answer(texts, Plan(weights=STATES), 0)), expected, atol=2e-3)
    assert len(notices) == 1
