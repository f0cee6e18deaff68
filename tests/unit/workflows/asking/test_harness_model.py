"""What the harness's model does by itself, against plain transformers; it needs no harness."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorabank
from lorabank.core.errors import DataError

FILE = Path(lorabank.__file__).parent / "workflows/asking/harness_model.py"


@pytest.fixture
def bank_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class over an empty one in the place of the harness's, as a module of its own."""
    api = ModuleType("lm_eval.api.model")
    vars(api)["TemplateLM"] = type("TemplateLM", (), {})
    for name, module in {"lm_eval.api.model": api, "lm_eval.utils": ModuleType("lm_eval.utils")}.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("lm_eval", "lm_eval.api"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    spec: Any = importlib.util.spec_from_file_location("harness_model_alone", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.BankModel


class Bare:
    """The block in which no adapters answer."""

    within = False

    def __enter__(self) -> None:
        self.within = True

    def __exit__(self, *_: object) -> None:
        self.within = False


@pytest.fixture
def base(make_language_model) -> SimpleNamespace:
    folder = make_language_model("llama")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    return SimpleNamespace(model=model, tokenizer=tokenizer, bare=Bare())


def asked(bank_model: Any, base: SimpleNamespace, limit: int) -> Any:
    def passes(plan: Any, count: int, ask: Any) -> Any:
        yield np.arange(count), ask(np.arange(count), lambda rows: None)

    mixture = SimpleNamespace(bare=lambda: base.bare)
    runtime = SimpleNamespace(base=base, batch_size=2, passes=passes, mixture=mixture)
    return bank_model(runtime, lambda texts: None, limit)


@pytest.mark.parametrize("limit", [4, 6, 9, 64])
def test_a_context_that_is_too_long_loses_its_beginning(bank_model, base, limit: int) -> None:
    """The last token of a continuation is predicted and not read."""
    pairs = [([1, 5, 9, 40, 41, 42, 43, 44], [7, 8]), ([1, 5, 9], [30, 31, 32]), ([1, 50, 51, 52], [9])]
    found = asked(bank_model, base, limit)._loglikelihood_tokens([(("a", "b"), *pair) for pair in pairs])
    for (value, _), (prompt, more) in zip(found, pairs, strict=True):
        read = [*prompt, *more[:-1]][-limit:]
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([read])).logits[0, -len(more) :].double()
        assert value == pytest.approx(float(logits.log_softmax(-1)[range(len(more)), more].sum()), abs=1e-4)


def test_a_continuation_that_does_not_fit_is_refused(bank_model, base) -> None:
    with pytest.raises(DataError, match="a continuation has 3 tokens, and the model takes 2 in all: 'xyz'"):
        asked(bank_model, base, 2)._loglikelihood_tokens([(("a", "xyz"), [1, 5], [7, 8, 9])])


def test_a_generation_reads_the_end_of_a_context_that_leaves_no_room(bank_model, base) -> None:
    model, texts = asked(bank_model, base, 12), ["the cat sat on the mat", "a b"]
    said = []
    for text in texts:
        ids = torch.tensor([base.tokenizer(text)["input_ids"][-8:]])
        with torch.no_grad():
            whole = base.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=1
            )
        said.append(base.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))
    within: list[bool] = []
    base.model.register_forward_hook(lambda *_: within.append(base.bare.within))
    assert model.generate_until([SimpleNamespace(args=(text, {"max_gen_toks": 4})) for text in texts]) == said
    assert within.count(False) == 4, "what may share a batch is measured in no state"
    stop = said[0][2]
    (cut,) = model.generate_until([SimpleNamespace(args=(texts[0], {"max_gen_toks": 4, "until": ["never", stop]}))])
    assert cut == said[0][: said[0].index(stop)]
    within.clear()
    asks = [{"max_gen_toks": 4, "until": ["", said[0][0]]}, {"max_gen_toks": 2, "until": "never"}]
    found = model.generate_until([SimpleNamespace(args=one) for one in zip(texts, asks, strict=True)])
    assert (found[0], said[1].startswith(found[1])) == ("", True)
    assert len(within) <= 2, "a batch of several lengths, whose first text ends at its stop"
