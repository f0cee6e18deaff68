"""What is not finite is no answer: at predict, generate, eval, compose and export, and no score is made of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.compose import merged
from lorabank.core.config import ComposeConfig, EvalConfig, GenerateConfig, InitConfig, PredictConfig
from lorabank.core.errors import DivergedError
from lorabank.evaluation.scoring import Said, score_rows
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.finite import check_tensors, finite_rows, log_total
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.workflows.assemble import RuntimeSettings, load_runtime
from tests.contract.conftest import KINDS, Lab

TEXTS = ("a b c", "x y")


@pytest.fixture(scope="module", params=KINDS)
def lab(request: pytest.FixtureRequest, make_lab: Callable[[str], Lab]) -> Lab:
    return make_lab(request.param)


def compose(bank: Path, weights: str, *given: str) -> None:
    config = ComposeConfig(mode="manual", name="huge", set=(f"weights={weights}", *given), device="cpu")
    api.compose(bank, config)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str, str], None]:
    """``unchecked(bank, name, weights)``: a composition as a version made it that checked nothing."""

    def make(bank: Path, name: str, weights: str) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(merged, "_try_out", lambda *args: None)
            patched.setattr(merged, "check_tensors", lambda *args: None)
            patched.setattr(merged, "distance_from_sum", lambda *args: {})
            config = ComposeConfig(mode="manual", name=name, set=(f"weights={weights}",), scores=False, device="cpu")
            api.compose(bank, config)

    return make


@pytest.fixture
def huge(copy, unchecked) -> Path:
    """A bank with a composition of enormous weights."""
    bank: Path = copy("olora", 2)
    unchecked(bank, "huge", "one=1e30,two=1")
    return bank


@pytest.mark.parametrize("task", [None, "one"])
def test_neither_predict_nor_eval_answers(huge: Path, task: str | None) -> None:
    with pytest.raises(DivergedError, match=r"composition 'huge': the merged weights of .* are not finite"):
        api.predict(huge, TEXTS, PredictConfig(composition="huge", task=task, device="cpu"))
    before = Bank.open(huge).all_evaluations()
    with pytest.raises(DivergedError, match=r"huge on task 'one': .* are not finite") as caught:
        api.evaluate(huge, EvalConfig(compositions=("huge",), device="cpu"))
    assert caught.value.exit_code == 11
    assert Bank.open(huge).all_evaluations() == before


def test_nothing_is_generated(lab: Lab, huge: Path) -> None:
    if lab.kind == "bert":
        pytest.skip("a classifier generates nothing")
    with pytest.raises(DivergedError, match=r"composition 'huge': the merged weights of .* are not finite"):
        api.generate(huge, TEXTS, GenerateConfig(composition="huge", task="one", device="cpu"))
    assert api.generate(huge, TEXTS, GenerateConfig(task="one", device="cpu", max_new_tokens=3))


@pytest.mark.parametrize(
    "given",
    [("one=1e30,two=1",), ("one=1,two=-1e30",), ("one=1e300,two=1",), ("one=1e300,two=1", "max_rank=1")],
)
def test_compose_refuses_weights_that_answer_nothing(copy, given: tuple[str, ...]) -> None:
    bank = copy("olora", 2)
    with pytest.raises(DivergedError, match=r"composition 'huge': the .* are not finite"):
        compose(bank, *given)
    assert Bank.open(bank).snapshot().compositions == ()
    assert Bank.open(bank).operations() == []


def test_what_is_not_finite_is_not_exported(copy, unchecked, tmp_path: Path) -> None:
    bank = copy("olora", 2)
    for name, weight in (("far", "1e300"), ("large", "1e30")):
        unchecked(bank, name, f"one={weight},two=1")
        with pytest.raises(DivergedError, match=r"the weighted sums on .* are not finite"):
            api.export(bank, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("strategy", ["olora", "inflora", "ewc"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_base_is_named_and_not_the_learning_rate(
    lab: Lab, tmp_path: Path, strategy: str, value: float
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in lab.base.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    name = next(
        key for key, tensor in tensors.items() if tensor.ndim == 2 and ("key" in key or ".k." in key or "k_" in key)
    )
    tensors[name][0, 0] = value
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    settings = lab.settings("one", strategy=strategy)
    with pytest.raises(
        DivergedError, match=f"base model has values that are not finite in its tensor .*{name}"
    ) as caught:
        api.add_task(tmp_path / "bank", "one", settings, init=InitConfig(base=str(base)))
    assert "learning-rate" not in (caught.value.hint or "")
    assert Bank.open(tmp_path / "bank").snapshot().tasks == ()


def _runtime(bank: Bank, **asked: Any) -> Runtime:
    snapshot = bank.snapshot()
    settings = RuntimeSettings(device="cpu", dtype="float32", batch_size=4, **asked)
    return load_runtime(bank, snapshot, OpenBase(snapshot.base), settings)


@pytest.fixture
def runtime(lab: Lab) -> Runtime:
    bank = Bank.open(lab.bank("olora", 2))
    return _runtime(bank)


def test_a_base_that_broke_is_named_wherever_it_is_asked(lab: Lab, runtime: Runtime) -> None:
    plan = Plan(weights=np.zeros(len(runtime.stack.names), np.float32))
    broken = runtime.base.model.get_input_embeddings().weight
    name = next(name for name, parameter in runtime.base.model.named_parameters() if parameter is broken)
    with torch.no_grad():
        broken[:] = math.nan
    for ask in (lambda: runtime.answer(TEXTS, plan, 0), lambda: runtime.features(TEXTS, 16)):
        with pytest.raises(DivergedError, match=f"in its tensor {name}"):
            ask()


def test_a_narrow_head_and_a_word_never_said_are_no_fault(runtime: Runtime) -> None:
    plan = Plan(weights=np.zeros(len(runtime.stack.names), np.float32))
    answers = runtime.answer(TEXTS, plan, np.array([0, 1]))  # of two and of three labels, in one batch
    assert np.isfinite(answers.probabilities).all()
    logits = torch.tensor([[0.0, 1.0, -math.inf], [0.0, -math.inf, 1.0], [math.inf, 0.0, 0.0], [math.nan, 0.0, 0.0]])
    assert finite_rows(logits, [2, 2, 3, 1]).tolist() == [True, False, False, False]
    assert log_total(logits).isnan().tolist() == [False, False, True, True]
    assert log_total(torch.full((2,), -math.inf)).isnan()
    assert log_total(logits[:1]).item() == pytest.approx(math.log(1 + math.e))


def test_an_answer_of_a_broken_adapter_names_the_text(lab: Lab, runtime: Runtime) -> None:
    """The texts that it does not touch are answered, so a row is judged by itself."""
    weights = np.zeros((2, len(runtime.stack.names)), np.float32)
    assert runtime.answer(TEXTS, Plan(weights=weights), 0).said
    weights[1] = math.nan
    with pytest.raises(DivergedError, match='of the text "x y" are not finite'):
        runtime.answer(TEXTS, Plan(weights=weights), 0)


def test_free_text_of_broken_logits_is_no_text(lab: Lab) -> None:
    if lab.kind == "bert":
        pytest.skip("a classifier generates nothing")
    asked = {"scoring": "generation", "settings": ("max_new_tokens=3",)}
    bank = Bank.open(lab.bank("olora", 2))
    runtime = _runtime(bank, asked=tuple(asked.items()))
    plan = Plan(weights=np.zeros(len(runtime.stack.names), np.float32))
    assert len(runtime.answer(TEXTS, plan, 0).said) == 2
    seen = [0]

    def late(module: object, args: object, output: Any) -> Any:
        seen[0] += 1
        if seen[0] == 2:  # the second step of the answer
            output.logits[1] = math.nan
        return output

    runtime.base.model.register_forward_hook(late)
    with pytest.raises(DivergedError, match=r'the logits of the text ".*" are not finite'):
        runtime.answer(TEXTS, plan, 0)


def test_tensors_are_named() -> None:
    check_tensors({}, "nothing")
    check_tensors({"a": torch.tensor([-1e19, 1e19]), "b": torch.zeros(2, 2, dtype=torch.bfloat16)}, "parts of")
    for broken in (math.nan, -math.inf, 1e20):
        with pytest.raises(DivergedError, match="parts of b or their squares are not finite"):
            check_tensors({"a": torch.zeros(1), "b": torch.tensor([1.0, broken])}, "parts of")


def test_a_perplexity_beyond_every_number_is_no_score() -> None:
    def score(likelihoods: list[float]) -> float:
        said = Said((), (), np.array(likelihoods), np.array([1, 2], np.int64))
        return score_rows("inverse_perplexity", said, ("", "")).value

    assert score([-1.0, -2.0]) == pytest.approx(math.exp(-1))
    assert 0 < score([-700.0, -1400.0]) < 1e-300
    for far in ([-1e4, -1e4], [-math.inf, -1.0]):
        with pytest.raises(DivergedError, match="the perplexity is not finite"):
            score(far)
