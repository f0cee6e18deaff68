"""Free text in states of its own: an answer is delivered once, also where a pass is made again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.config import SamplingConfig
from lorabank.core.errors import IncompatibleError
from lorabank.models.answering.base import AnswerForm
from lorabank.models.answering.replies import GenerationRequest, Written
from lorabank.models.answering.text_answers import TextAnswerer
from lorabank.models.bases.loading import describe_base, load_base
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.mixing.places import UnplacedError
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.workflows.asking.writing import write

MODULES = {f"model.layers.{i}.self_attn.{part}_proj": (32, 32) for i in range(2) for part in "qo"}
FORM = AnswerForm((), 256, "generation", None)
TEXTS = ["the longest of three", "a shorter one", "short"]
WEIGHTS = np.array([[1, 0], [0, 1], [0.5, 0.5]], np.float32)
LENGTH = 8


class Heard:
    """What was delivered of each text, in its order."""

    def __init__(self) -> None:
        self.pieces: dict[str, list[str]] = {text: [] for text in TEXTS}
        self.done: dict[str, list[Written]] = {text: [] for text in TEXTS}

    def requests(self) -> list[GenerationRequest]:
        sampling = SamplingConfig(max_new_tokens=LENGTH)
        return [
            GenerationRequest(sampling, hear=self.pieces[text].append, done=self.done[text].append) for text in TEXTS
        ]


@pytest.fixture
def adapters(make_adapter: Any) -> dict[str, LoraFactors]:
    return {name: make_adapter(MODULES, 2, 0.3, seed=seed) for seed, name in enumerate("ab")}


@pytest.fixture
def folder(make_language_model: Any) -> Any:
    return make_language_model("llama")


@pytest.fixture
def runtime(folder: Any, adapters: dict[str, LoraFactors]) -> Runtime:
    base = load_base(describe_base(resolve_base(str(folder))), device="cpu", dtype="float32")
    answerer = TextAnswerer(base, "CAUSAL_LM", (FORM,), batch_size=1)
    return Runtime(base, AdapterStack.build(adapters), answerer, batch_size=1)


def plainly(folder: Any, adapters: dict[str, LoraFactors]) -> list[str]:
    """Greedy, by a model of its own with each text's adapters in its weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    bare = {module: model.get_submodule(module).weight.detach().clone() for module in MODULES}
    said = []
    for weights, text in zip(WEIGHTS.tolist(), TEXTS, strict=True):
        for module, weight in bare.items():
            deltas = [w * own.delta(module) for w, own in zip(weights, adapters.values(), strict=True)]
            model.get_submodule(module).weight.data = weight + sum(deltas)
        ids = torch.tensor([[0, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        out = model.generate(ids, do_sample=False, max_new_tokens=LENGTH, eos_token_id=2, pad_token_id=1)
        said.append(str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip())
    return said


def test_a_pass_that_is_made_again_delivers_nothing_twice(
    folder: Any, adapters: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails when the first text is written and pieces of the second were heard."""
    heard, failed = Heard(), list[str]()
    expected = plainly(folder, adapters)
    assert runtime.mixture.mixes
    per_sample = runtime.mixture.per_sample

    def failing(weights: Any) -> None:
        if heard.done[TEXTS[0]] and len(heard.pieces[TEXTS[1]]) > 1:
            failed.append("".join(heard.pieces[TEXTS[1]]))
            raise UnplacedError("a module's input is of another shape")
        per_sample(weights)

    monkeypatch.setattr(runtime.mixture, "per_sample", failing)
    found = write(runtime, TEXTS, Plan(weights=WEIGHTS), [FORM] * 3, heard.requests())
    assert len(failed) == 1
    assert 0 < len(failed[0]) < len(expected[1])
    assert [one.text for one in found] == expected
    assert ["".join(pieces) for pieces in heard.pieces.values()] == expected
    assert [[one.text for one in done] for done in heard.done.values()] == [[text] for text in expected]


def test_nothing_is_delivered_before_the_adapters_are_known_to_be_called(
    folder: Any, adapters: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a model passes them by, only merged weights answer: what it said before is not the adapters' answer."""
    heard, early = Heard(), list[list[int]]()

    def passed_by() -> None:
        if runtime.mixture.mixes:
            early.append([len(done) for done in heard.done.values()])
            raise IncompatibleError("the model's code reads the weight and never calls the module")

    monkeypatch.setattr(runtime.mixture, "check_called", passed_by)
    found = write(runtime, TEXTS, Plan(weights=WEIGHTS), [FORM] * 3, heard.requests())
    assert early == [[0, 0, 0]]
    assert [one.text for one in found] == plainly(folder, adapters)
    assert ["".join(pieces) for pieces in heard.pieces.values()] == [one.text for one in found]
    assert [len(done) for done in heard.done.values()] == [1, 1, 1]
