"""Banks on quantised bases: they learn and answer as on a float base of the same weights, and leave it exactly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, EvalConfig, InitConfig, PredictConfig
from lorabank.core.errors import IncompatibleError
from lorabank.core.observer import SilentObserver
from lorabank.core.shelves import QUANTISERS
from lorabank.models.bases.loading import load_base
from lorabank.models.bases.quantised.linear import QuantisedLinear
from tests.contract.conftest import TASKS, Lab

TEXTS = ["a b c d", "x y z", "m n o p q", "k"]


@pytest.fixture(params=["bert", "llama"])
def lab(make_lab: Callable[[str], Lab], request: pytest.FixtureRequest) -> Lab:
    return make_lab(request.param)


@pytest.fixture(params=list(QUANTISERS.table))
def quantiser(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(path: Path, base: Path, quantise: str | None) -> Path:
    api.init_bank(path, InitConfig(base=str(base), task_type="auto", quantise=quantise))
    return path


def twin_base(bank: Path, folder: Path, tokenizer_of: Path) -> Path:
    """The quantised base as a float checkpoint, whose linear layers have the matrices that the quantiser gives."""
    model = load_base(Bank.open(bank).snapshot().base).model
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantisedLinear):
            plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            plain.weight.data = module.weight
            if module.bias is not None:
                plain.bias.data = module.bias.data
            model.set_submodule(name, plain)
    (model.base_model if hasattr(model, "classifier") else model).save_pretrained(folder)
    for file in tokenizer_of.iterdir():
        if "token" in file.name or "chat" in file.name:
            shutil.copy(file, folder)
    return folder


def learn(lab: Lab, bank: Path, task: str, **config: Any) -> Any:
    base = Bank.open(bank).snapshot().base.name
    return api.add_task(
        bank, task, lab.settings(task, **config), init=InitConfig(base=base), observer=SilentObserver()
    ).adapter


def answers(bank: Path, **config: Any) -> list[float]:
    found = api.predict(bank, TEXTS, PredictConfig(device="cpu", **config))
    return [each.probability for each in found]


def deltas(bank: Path, digest: str) -> dict[str, torch.Tensor]:
    tensors = load_file(bank / "adapters" / digest / "adapter_model.safetensors")
    low = {k: tensors[k.replace("lora_A", "lora_B")] @ a for k, a in tensors.items() if k.endswith("lora_A.weight")}
    biases = bank / "adapters" / digest / "bias.safetensors"
    return load_file(biases) if biases.exists() else low


METHODS = [
    {"strategy": "amlora"},
    {"variant": "relora"},
    {"start": "pissa"},
    {"target_modules": "all-linear"},
]


@pytest.mark.parametrize(
    ("quantiser", "method"),
    [
        *((name, {}) for name in QUANTISERS.table),
        ("nf4", {"variant": "dora"}),
        ("nf4", {"variant": "bitfit", "strategy": "inclora"}),
        *(pytest.param("nf4", method, marks=pytest.mark.slow) for method in METHODS),
    ],
    ids=lambda one: one if isinstance(one, str) else "-".join(one.values()) or "olora",
)
def test_three_tasks_are_learnt_as_on_the_float_twin(lab: Lab, quantiser: str, method: Any, tmp_path: Path) -> None:
    if (lab.kind, method.get("variant")) == ("llama", "bitfit"):
        pytest.skip("it has no biases")
    bank = made(tmp_path / "bank", lab.base, quantiser)
    other = made(tmp_path / "other", twin_base(bank, tmp_path / "twin", lab.base), None)
    for task in TASKS:
        pair = [learn(lab, one, task, lora_dropout=0.0, **method) for one in (bank, other)]
        ours, theirs = (deltas(path, adapter.digest) for path, adapter in zip((bank, other), pair, strict=True))
        for key, delta in ours.items():
            assert float((delta - theirs[key]).norm() / theirs[key].norm()) < 0.02, key
        for state in ("learnt", "now"):
            told = {"task": TASKS[0], "state": state}
            assert answers(bank, **told) == pytest.approx(answers(other, **told), abs=2e-3)
    assert api.verify(bank, full=True) == ()


@pytest.mark.by_turns
def test_a_resumed_training_has_the_same_bytes(lab: Lab, quantiser: str, tmp_path: Path) -> None:
    bank = made(tmp_path / "bank", lab.base, quantiser)
    learn(lab, bank, "one")
    other = Path(shutil.copytree(bank, tmp_path / "other"))

    class Stop(SilentObserver):
        def advance(self, done: int, values: object) -> None:
            if done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.add(bank, "two", Stop(), save_steps=2)
    resumed = api.add_task(bank, "two", None, resume=True).adapter
    assert resumed.digest == learn(lab, other, "two", save_steps=2).digest


def test_compositions_answer_beside_the_weights(lab: Lab, tmp_path: Path) -> None:
    bank = made(tmp_path / "bank", lab.base, "int8")
    other = made(tmp_path / "other", twin_base(bank, tmp_path / "twin", lab.base), None)
    for task in TASKS[:2]:
        for one in (bank, other):
            learn(lab, one, task, lora_dropout=0.0)
    for name, settings in (
        ("sum", {"weights": "one=0.5,two=0.7"}),
        ("cut", {"merger": "ties", "set": ("max_rank=2",)}),
    ):
        for one in (bank, other):
            api.compose(one, ComposeConfig(mode="merged", name=name, device="cpu", **settings))
        told = {"composition": name, "task": "one"}
        assert answers(bank, **told) == pytest.approx(answers(other, **told), abs=2e-3)
    for one in (bank, other):
        api.compose(one, ComposeConfig(mode="routed", name="routed", device="cpu"))
    assert answers(bank, composition="routed") == pytest.approx(answers(other, composition="routed"), abs=2e-3)
    with pytest.raises(IncompatibleError, match="is quantised, and a delta weight of full rank") as caught:
        api.compose(bank, ComposeConfig(mode="merged", name="full", merger="ties", device="cpu"))
    assert "max_rank" in str(caught.value.hint)
    assert {one.name for one in api.overview(bank).compositions} == {"sum", "cut", "routed"}
    assert api.evaluate(bank, EvalConfig(device="cpu"))


@pytest.mark.by_turns
def test_an_adapter_leaves_as_plain_peft_for_that_base(lab: Lab, quantiser: str, tmp_path: Path) -> None:
    bank = made(tmp_path / "bank", lab.base, quantiser)
    twin = twin_base(bank, tmp_path / "twin", lab.base)
    for task in TASKS[:2]:
        learn(lab, bank, task)
    api.export(bank, "two", tmp_path / "out")
    from transformers import AutoModelForSequenceClassification

    text, ids = TEXTS[0], [0, *(4 + ord(letter) - ord("a") for letter in TEXTS[0].split()), 2]
    if lab.kind != "bert":
        return  # what follows needs a head
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    labels = len(tensors["base_model.model.classifier.bias"])
    model = AutoModelForSequenceClassification.from_pretrained(twin, num_labels=labels)
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "out").eval()
    expected = loaded(input_ids=torch.tensor([ids])).logits.softmax(-1).max()
    assert answers(bank, task="two")[TEXTS.index(text)] == pytest.approx(float(expected), abs=1e-5)


def test_a_bank_keeps_to_its_quantiser(lab: Lab, tmp_path: Path) -> None:
    bank, plain = made(tmp_path / "bank", lab.base, "int8"), made(tmp_path / "plain", lab.base, None)
    for path, quantise, said in (
        (bank, "nf4", "quantised by int8:; --quantise asks for nf4:"),
        (plain, "int8", "without quantisation; --quantise asks for int8:"),
    ):
        with pytest.raises(IncompatibleError, match=said):
            api.add_task(
                path, "one", lab.settings("one"), init=InitConfig(quantise=quantise), observer=SilentObserver()
            )
    learn(lab, bank, "one")
    api.export(bank, "one", tmp_path / "out")
    assert Bank.open(plain).snapshot().base.quantisation is None
    assert Bank.open(bank).snapshot().base.quantisation == "int8:"


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_an_export_holds_the_correction(lab: Lab, variant: str, tmp_path: Path) -> None:
    """Plain PEFT over the quantised base without the correction answers as the bank does."""
    if lab.kind != "bert":
        pytest.skip("plain answers of a head are enough")
    from transformers import AutoModelForSequenceClassification

    bank = made(tmp_path / "bank", lab.base, "int8+lqer:rank=3")
    bare = made(tmp_path / "bare", lab.base, "int8")
    twin = twin_base(bare, tmp_path / "twin", lab.base)
    for task in TASKS[:2]:
        learn(lab, bank, task, variant=variant)
    ids = [0, *(4 + ord(letter) - ord("a") for letter in TEXTS[0].split()), 2]
    for state in ("now", "learnt"):
        result = api.export(bank, "two", tmp_path / state, state=state)
        assert result.note.endswith("the correction of the quantised base is in it")
        labels = len(load_file(tmp_path / state / "adapter_model.safetensors")["base_model.model.classifier.bias"])
        model = AutoModelForSequenceClassification.from_pretrained(twin, num_labels=labels)
        loaded = peft.PeftModel.from_pretrained(model, tmp_path / state).eval()
        expected = float(loaded(input_ids=torch.tensor([ids])).logits.softmax(-1).max())
        assert answers(bank, task="two", state=state)[0] == pytest.approx(expected, abs=1e-5)


def test_a_base_that_no_other_program_has_keeps_its_adapters(lab: Lab, tmp_path: Path) -> None:
    bank = made(tmp_path / "bank", lab.base, "int8+loftq:rank=2")
    learn(lab, bank, "one")
    assert answers(bank, task="one")
    with pytest.raises(IncompatibleError, match="no other program has them"):
        api.export(bank, "one", tmp_path / "out")
    assert not (tmp_path / "out").exists()
