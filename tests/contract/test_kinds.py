"""Banks whose adapters stand on tables and convolutions: every strategy, mixture and folder, as on linear layers."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, EvalConfig, InitConfig, PredictConfig, TrainConfig
from lorabank.core.errors import ConfigError, IncompatibleError
from lorabank.core.shelves import GATES, VARIANTS
from tests.contract.conftest import SETTINGS, write_task
from tests.unit.workflows.language_models import CLOSE, add, bank_logits, own_state, peft_logits

WEIGHTS = "adapter_model.safetensors"
TEXTS = ("a b c a b", "x y z", "m n o p q r s t", "c", "z a y b")
BASES: dict[str, dict[str, Any]] = {
    "bert": {"target_modules": "word_embeddings,query"},
    "squeezebert": {"target_modules": "auto", "embedding_size": 32},
    "convbert": {"target_modules": "pointwise,value", "embedding_size": 32, "conv_kernel_size": 3, "head_ratio": 2},
}
"""Type of a model, target modules on a table, on convolutions of four groups or on whole ones, and its config."""
NAMES = {
    "bert": ("embeddings.word_embeddings", "lora_embedding_A", (2, 40)),
    "squeezebert": ("encoder.layers.0.attention.query", "lora_A.weight", (8, 32, 1)),
    "convbert": ("encoder.layer.0.attention.self.key_conv_attn_layer.pointwise", "lora_A.weight", (2, 32, 1)),
}
"""A module, its tensor in a PEFT folder, and the tensor's shape."""


@dataclass
class World:
    """A base of one kind, and the rows of two tasks."""

    kind: str
    base: Path
    folder: Path

    def settings(self, task: str, **config: Any) -> TrainConfig:
        number = ("one", "two", "three").index(task)
        path = self.folder / f"{task}.jsonl"
        data = path if path.exists() else write_task(path, labels=2 + number % 2, seed=number)
        own = {"data": str(data), "target_modules": BASES[self.kind]["target_modules"]}
        return TrainConfig(**(own | SETTINGS | config))

    def add(self, bank: Path, task: str, **config: Any) -> Any:
        return api.add_task(bank, task, self.settings(task, **config), init=InitConfig(base=str(self.base)))

    def fill(self, bank: Path, **config: Any) -> Path:
        for task in ("one", "two"):
            self.add(bank, task, **config)
        return bank


@pytest.fixture(scope="module", params=BASES)
def world(request: pytest.FixtureRequest, save_base: Callable[..., Path], tmp_path_factory: Any) -> World:
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    config = {name: value for name, value in BASES[kind].items() if name != "target_modules"}
    return World(kind, save_base(folder / "base", kind, **config), folder)


@pytest.fixture(scope="module")
def filled(world: World) -> Path:
    """Two tasks of the default strategy; tests only read it."""
    return world.fill(world.folder / "filled")


def in_peft(world: World, folder: Path, labels: int) -> np.ndarray:
    """Probabilities of the labels of TEXTS in plain PEFT, one text at a time."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    plain = AutoModelForSequenceClassification.from_pretrained(world.base, num_labels=labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # about keys that it does not load
        warnings.filterwarnings("ignore", message="LoRA adapter added to ConvNd layer with groups")
        model = PeftModel.from_pretrained(plain, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(world.base)
    with torch.no_grad():
        return np.stack(
            [model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1).numpy() for text in TEXTS]
        )


def check_same(bank: Path, of: str, expected: np.ndarray, **asked: Any) -> None:
    """The bank's answers, in one batch, have the likeliest label of PEFT, as likely as there."""
    labels = Bank.open(bank).snapshot().task(of).labels
    found = api.predict(bank, TEXTS, PredictConfig(device="cpu", **asked))
    for one, row in zip(found, expected, strict=True):
        assert one.label == labels[int(row.argmax())]
        assert one.probability == pytest.approx(float(row.max()), abs=1e-5)


def test_both_tasks_are_plain_peft(world: World, filled: Path, tmp_path: Path) -> None:
    """What is exported, and the folder where it lies in the bank."""
    for task, labels in (("one", 2), ("two", 3)):
        api.export(filled, task, tmp_path / task, state="learnt")
        check_same(filled, task, in_peft(world, tmp_path / task, labels), task=task, state="learnt")
    digest = Bank.open(filled).snapshot().adapter_of("one").digest
    check_same(filled, "one", in_peft(world, filled / "adapters" / digest, 2), task="one", state="learnt")
    name, ending, shape = NAMES[world.kind]
    tensors = load_file(filled / "adapters" / digest / "adapter_model.safetensors")
    (key,) = [key for key in tensors if key.endswith(f"{name}.{ending}")]
    assert tensors[key].shape == shape


def test_what_was_exported_comes_back(world: World, filled: Path, tmp_path: Path) -> None:
    api.export(filled, "one", tmp_path / "out", own=True)
    guest = tmp_path / "guest"
    api.import_adapter(
        guest, tmp_path / "out", "one", config=world.settings("one"), init=InitConfig(base=str(world.base))
    )
    check_same(guest, "one", in_peft(world, tmp_path / "out", 2), task="one")


@pytest.mark.by_turns
def test_every_mixture_answers_as_the_adapters_do(world: World, filled: Path, tmp_path: Path) -> None:
    """Routed texts of two tasks in one batch answer as each does alone; a sum is one PEFT folder."""
    bank = Path(shutil.copytree(filled, tmp_path / "bank"))
    api.compose(bank, ComposeConfig(mode="prototype", name="routed", device="cpu"))
    routed = api.predict(bank, TEXTS * 4, PredictConfig(composition="routed", device="cpu"))
    assert {one.task for one in routed} == {"one", "two"}
    for one in routed:
        (alone,) = api.predict(bank, [one.text], PredictConfig(task=one.task, state="learnt", device="cpu"))
        assert one.label == alone.label
        assert one.probability == pytest.approx(alone.probability, abs=1e-5)
    api.compose(bank, ComposeConfig(mode="manual", weights="one=0.5,two=-1", name="both", device="cpu"))
    api.export(bank, "both", tmp_path / "both")
    heads = load_file(filled / "adapters" / Bank.open(bank).snapshot().adapter_of("one").digest / WEIGHTS)
    folder = tmp_path / "with head"
    shutil.copytree(tmp_path / "both", folder)
    from safetensors.torch import save_file

    head = {key: value for key, value in heads.items() if "lora" not in key}
    save_file(head | load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"format": "pt"})
    expected = in_peft(world, folder, 2)
    check_same(bank, "one", expected, composition="both", task="one")


@pytest.mark.by_turns
@pytest.mark.parametrize("gate", sorted(GATES))
def test_every_gate_is_fitted_and_answers(world: World, filled: Path, tmp_path: Path, gate: str) -> None:
    bank = Path(shutil.copytree(filled, tmp_path / "bank"))
    settings = {"mode": "gated", "gate": gate, "stages": "last", "device": "cpu", "batch_size": 8}
    for name in ("first", "second"):
        api.compose(bank, ComposeConfig(name=name, **settings))
    snapshot = Bank.open(bank).snapshot()
    assert snapshot.composition("first").objects == snapshot.composition("second").objects
    reports = api.evaluate(bank, EvalConfig(compositions=("first", "second"), device="cpu"))
    assert reports[0].values == reports[1].values


@pytest.mark.by_turns
@pytest.mark.parametrize("strategy", ["olora-projected", "seqlora", "ewc", "nlora"])
def test_a_strategy_trains_there_as_on_linear_layers(world: World, tmp_path: Path, strategy: str) -> None:
    banks = [world.fill(tmp_path / name, strategy=strategy) for name in ("first", "second")]
    records = [[Bank.open(bank).snapshot().adapter_of(task) for task in ("one", "two")] for bank in banks]
    assert [one.digest for one in records[0]] == [one.digest for one in records[1]]
    if strategy == "olora-projected":
        assert max(records[0][1].metrics["overlap"].values()) < 1e-4


REFUSED = {
    **{(kind, "galore"): "computes the gradient of a whole weight" for kind in BASES},
    **{(kind, "qa-lora"): "not a multiple of the group" for kind in ("bert", "squeezebert")},
}
"""What a kind refuses, with a part of the reason."""


@pytest.mark.by_turns
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_variant_is_plain_peft(world: World, tmp_path: Path, variant: str) -> None:
    if reason := REFUSED.get((world.kind, variant)):
        with pytest.raises(ConfigError, match=reason):
            world.fill(tmp_path / "bank", variant=variant, strategy="isolated")
        return
    bank = world.fill(tmp_path / "bank", variant=variant, strategy="isolated")
    if VARIANTS.load(variant).gains and world.kind == "squeezebert":
        with pytest.raises(IncompatibleError, match="PEFT's DoRA knows no groups"):
            api.export(bank, "two", tmp_path / "two", own=True)
        return
    api.export(bank, "two", tmp_path / "two", own=True)
    check_same(bank, "two", in_peft(world, tmp_path / "two", 3), task="two")


def test_covariances_of_tokens_are_refused(world: World, tmp_path: Path) -> None:
    """A table reads names; a convolution reads windows, which have a covariance."""
    if world.kind != "bert":
        world.fill(tmp_path / "bank", strategy="inflora")
        return
    with pytest.raises(ConfigError, match=r"word_embeddings is a table of embeddings") as caught:
        world.add(tmp_path / "bank", "one", strategy="inflora")
    assert "\n" not in str(caught.value)


def test_attention_over_earlier_adapters(world: World, tmp_path: Path) -> None:
    if world.kind == "squeezebert":
        world.add(tmp_path / "bank", "one", strategy="amlora")
        with pytest.raises(ConfigError, match=r"weighs adapters on whole matrices; .*query\.0 is a group of one"):
            world.add(tmp_path / "bank", "two", strategy="amlora")
        return
    bank = world.fill(tmp_path / "bank", strategy="amlora")
    assert len(api.predict(bank, TEXTS, PredictConfig(task="two", device="cpu"))) == len(TEXTS)


# ---------------------------------------------------------------------------------------------- a language model's


def test_the_embedding_of_a_language_model(make_language_model: Callable[..., Path], tmp_path: Path) -> None:
    """Whose logits may be made of the same numbers: those stay."""
    base = make_language_model("llama", tie_word_embeddings=True, initializer_range=0.2)
    bank = tmp_path / "bank"
    for seed, (task, labels) in enumerate({"one": ("no", "yes"), "two": ("one", "three", "two")}.items()):
        add(bank, base, task, labels, seed, r=2, lora_alpha=4.0, target_modules="embed_tokens,q_proj")
    for task in ("one", "two"):
        api.export(bank, task, tmp_path / task, state="learnt")
        pairs = zip(bank_logits(bank, own_state(bank, task)), peft_logits(base, tmp_path / task), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, **CLOSE)


def test_a_folder_with_the_table_that_it_was_trained_on(
    make_language_model: Callable[..., Path], tmp_path: Path
) -> None:
    """PEFT saves an adapted ``embed_tokens`` with its table: it must be the base's."""
    import peft
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    base = make_language_model("llama", initializer_range=0.2)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(model, config)
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs" / WEIGHTS)
    (table,) = [key for key in tensors if key.endswith("embed_tokens.base_layer.weight")]
    data = write_task(tmp_path / "rows.jsonl", labels=2, seed=0)
    settings = TrainConfig(data=str(data), device="cpu", set=("prompt_template={text}:",), eval_fraction=0.5)
    bank = tmp_path / "bank"
    api.import_adapter(bank, tmp_path / "theirs", "one", config=settings, init=InitConfig(base=str(base)))
    pairs = zip(bank_logits(bank, own_state(bank, "one")), peft_logits(base, tmp_path / "theirs"), strict=True)
    for ours, other in pairs:
        torch.testing.assert_close(ours, other, **CLOSE)
    tensors[table][0, 0] += 1
    save_file(tensors, tmp_path / "theirs" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(IncompatibleError, match=r"it brings a table for .*embed_tokens.* that is not the base's"):
        api.import_adapter(
            tmp_path / "other", tmp_path / "theirs", "one", config=settings, init=InitConfig(base=str(base))
        )
