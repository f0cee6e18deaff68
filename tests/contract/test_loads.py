"""One use case builds the tokenizer once, loads the base once and reads its weights for the fingerprint once."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub import constants

from lorabank import api
from lorabank.core.config import ComposeConfig, EvalConfig, InitConfig, PredictConfig
from lorabank.models.bases import kept_facts

TEXTS = ("a b c", "x y z")
ONCE = {"loads": 1, "hashes": 1, "tokenizers": 1}


@pytest.fixture(scope="module", params=["bert", "llama"])
def lab(make_lab: Callable[[str], Any], request: pytest.FixtureRequest) -> Any:
    return make_lab(request.param)


def forget() -> None:
    """Know nothing of any weights, as a process does on a machine where they were never read."""
    kept_facts._FACTS.clear()
    shutil.rmtree(Path(constants.HF_HOME) / "lorabank" / "fingerprints", ignore_errors=True)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each was done, where nothing is known of the base; its files count as old enough to be known."""
    found: Counter[str] = Counter()

    def counted(holder: Any, name: str, what: str, *, method: bool) -> None:
        original = getattr(holder, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            found[what] += 1
            return original(*args[method:], **kwargs)

        monkeypatch.setattr(holder, name, classmethod(call) if method else call)

    counted(transformers.AutoModelForSequenceClassification, "from_pretrained", "loads", method=True)
    counted(transformers.AutoModelForCausalLM, "from_pretrained", "loads", method=True)
    counted(transformers.AutoTokenizer, "from_pretrained", "tokenizers", method=True)
    counted(kept_facts, "weight_facts", "hashes", method=False)
    monkeypatch.setattr(kept_facts, "SETTLED", 0)
    forget()
    return found


def test_the_first_task_of_a_new_bank(lab: Any, tmp_path: Path, counts: Counter[str]) -> None:
    api.add_task(tmp_path / "bank", "one", lab.settings("one"), init=InitConfig(base=str(lab.base)))
    assert counts == ONCE


@pytest.mark.parametrize("strategy", ["olora", "replay"])
def test_a_task_more(lab: Any, copy: Any, counts: Counter[str], strategy: str) -> None:
    """And what scores it keeps nothing of the training: a base from the files gives the same score."""
    bank = copy(strategy, 1)
    counts.clear()
    forget()
    told = api.add_task(bank, "two", lab.settings("two", strategy=strategy)).score
    assert counts == ONCE
    (anew,) = api.evaluate(bank, EvalConfig(batch_size=63))
    assert (anew.computed, anew.values[-1][-1]) == (2, told["value"])


def test_predict_eval_and_compose(copy: Any, counts: Counter[str]) -> None:
    bank = copy("olora", 2)
    uses: dict[str, Callable[[], object]] = {
        "compose": lambda: api.compose(bank, ComposeConfig(mode="attention", set=("epochs=1",), device="cpu")),
        "predict": lambda: api.predict(bank, TEXTS, PredictConfig(composition="attention", device="cpu")),
        "eval": lambda: api.evaluate(bank, EvalConfig(all=True, forgetting_matrix=True, batch_size=3, device="cpu")),
    }
    for use, call in uses.items():
        counts.clear()
        forget()
        call()
        assert counts == ONCE, use


@pytest.mark.by_turns
@pytest.mark.parametrize(("targets", "loads"), [("auto", 1), ("all-linear", 2)])
def test_a_base_that_the_past_would_nearly_double_is_read_again(
    lab: Any, copy: Any, counts: Counter[str], targets: str, loads: int
) -> None:
    bank = copy("olora", 0)
    api.add_task(bank, "one", lab.settings("one", target_modules=targets))
    counts.clear()
    api.add_task(bank, "two", lab.settings("two", target_modules=targets))
    assert (counts["loads"], counts["hashes"], counts["tokenizers"]) == (loads, 0, 1)
