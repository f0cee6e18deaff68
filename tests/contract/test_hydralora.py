"""Tasks of HydraLoRA: trained, stored, asked, routed and removed as all tasks; what sums adapters refuses them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import (
    AdviseConfig,
    ComposeConfig,
    EvalConfig,
    FoldConfig,
    GenerateConfig,
    InitConfig,
    PredictConfig,
)
from lorabank.core.errors import ConfigError, DamagedError, DataError, IncompatibleError, LorabankError
from lorabank.core.observer import SilentObserver
from lorabank.data.formats.parquet import from_parquet
from lorabank.models.bases.loading import load_base
from tests.contract.conftest import PLAIN, Lab
from tests.contract.serving import Here

HYDRA = {"strategy": "isolated", "variant": "hydralora", "lora_dropout": 0.1}
S, R, HEADS = 8.0 / 2, 2, 3
"""Scaling and rank of the tiny banks, and the default number of B."""


@pytest.fixture(scope="module")
def bank(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank with a task of HydraLoRA and one of LoRA; tests only read it."""
    path = tmp_path_factory.mktemp("hydra") / "bank"
    lab.add(path, "one", **HYDRA)
    lab.add(path, "two", strategy="isolated")
    return path


@pytest.fixture
def own(bank: Path, tmp_path: Path) -> Path:
    """The same to change."""
    return Path(shutil.copytree(bank, tmp_path / "own"))


def hook(bank: Path, digest: str, model: Any) -> None:
    """Add ``s sum_i softmax(R x)_i B_i A x`` to a plain model's modules, from the bank's file."""
    tensors = load_file(bank / "adapters" / digest / "adapter_model.safetensors")
    names = [key.removesuffix(".hydra_A") for key in tensors if key.endswith(".hydra_A")]
    assert names
    for name in names:
        A, B, router = (tensors[f"{name}.hydra_{one}"] for one in ("A", "B", "router"))
        assert (A.shape[0], B.shape[1], router.shape) == (R, HEADS * R, (HEADS, A.shape[1]))

        def add(_: Any, inputs: Any, out: torch.Tensor, A=A, B=B, router=router) -> torch.Tensor:
            x = inputs[0]
            scores = (x @ router.T).exp()
            h, total = x @ A.T, 0.0
            for i in range(HEADS):
                share = scores[..., i : i + 1] / scores.sum(-1, keepdim=True)
                total = total + share * (h @ B[:, i * R : (i + 1) * R].T)
            return out + S * total

        model.get_submodule(name).register_forward_hook(add)


def digest_of(bank: Path, task: str) -> str:
    return Bank.open(bank).snapshot().adapter_of(task).digest


def refused(kind: type[LorabankError], match: str, call: Callable[..., object], *args: Any, **options: Any) -> Any:
    with pytest.raises(kind, match=match) as caught:
        call(*args, **options)
    assert "\n" not in caught.value.message
    assert caught.value.unchanged
    assert caught.value.commands or caught.value.hint
    return caught.value


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_a_task_answers_as_a_plain_model_with_its_tensors(
    make_lab: Callable[[str], Lab], tmp_path: Path, kind: str
) -> None:
    lab, bank, texts = make_lab(kind), tmp_path / "bank", ["a b c", "x y z", "n o p q"]
    adapter = lab.add(bank, "one", **HYDRA, max_steps=4).adapter
    assert (adapter.metrics["tuner"], adapter.r, adapter.lora_alpha) == ("hydralora", R, 8.0)
    model, answer = PLAIN[kind](lab.base, bank, adapter.digest)
    bare = torch.stack([answer(text) for text in texts]).softmax(-1)
    hook(bank, adapter.digest, model)
    said = api.predict(bank, texts, PredictConfig(task="one", device="cpu"))
    moved = 0.0
    with torch.no_grad():
        for text, one, before in zip(texts, said, bare, strict=True):
            shares = answer(text).softmax(-1)
            moved = max(moved, float((shares - before).abs().max()))
            assert one.label == f"part{int(shares.argmax())}"
            assert one.probability == pytest.approx(float(shares.max()), abs=1e-5)
    assert moved > 1e-3
    if kind == "llama":
        (written,) = api.generate(
            bank, ["a b c"], GenerateConfig(task="one", device="cpu", max_new_tokens=4, raw=True)
        )
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(lab.base)
        ids = tokenizer("a b c", return_tensors="pt")["input_ids"]
        wanted = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
        assert written.label == tokenizer.decode(wanted, skip_special_tokens=True)
        with Here(bank) as server:
            reply = server.post("/v1/completions", {"model": "one", "prompt": "a b c"}).json()
        assert reply["choices"][0]["text"] == said[0].label


class Stop(SilentObserver):
    """Ctrl-C after three steps of training, when a checkpoint of the second one is there."""

    def advance(self, done: int, values: object) -> None:
        if done == 3:
            raise KeyboardInterrupt


def test_the_same_seed_gives_the_same_bytes_resumed_or_not(lab: Lab, tmp_path: Path) -> None:
    steps = HYDRA | {"max_steps": 4, "save_steps": 2}
    whole = lab.add(tmp_path / "whole", "one", **steps).adapter
    with pytest.raises(KeyboardInterrupt):
        lab.add(tmp_path / "stopped", "one", Stop(), **steps)
    resumed = api.add_task(tmp_path / "stopped", "one", None, resume=True, observer=SilentObserver()).adapter
    assert (resumed.digest, dict(resumed.objects)) == (whole.digest, dict(whole.objects))
    assert lab.add(tmp_path / "other", "one", **steps | {"seed": 1}).adapter.digest != whole.digest


def test_a_router_sends_texts_to_it_and_to_ordinary_tasks(own: Path, texts: list[str]) -> None:
    api.compose(own, ComposeConfig(mode="routed", tasks="one,two", device="cpu"))
    routed = api.predict(own, texts, PredictConfig(composition="routed", device="cpu"))
    assert {one.task for one in routed} == {"one", "two"}
    for text, one in zip(texts, routed, strict=True):
        (alone,) = api.predict(own, [text], PredictConfig(task=one.task, device="cpu"))
        assert (one.label, one.adapters) == (alone.label, {one.task: 1.0})
        assert one.probability == pytest.approx(alone.probability, abs=1e-6)


def test_the_matrix_has_its_score(own: Path, lab: Lab) -> None:
    (report,) = api.evaluate(own, EvalConfig(device="cpu"))
    row = dict(zip(report.tasks, report.values[-1], strict=True))
    adapter = digest_of(own, "one")
    model, answer = PLAIN["bert"](lab.base, own, adapter)
    hook(own, adapter, model)
    kept = from_parquet(Bank.open(own).read_blob(Bank.open(own).snapshot().dataset("one", "eval").blob))
    pairs = zip(kept.texts, kept.labels, strict=True)
    right = [f"part{int(answer(text).argmax())}" == label for text, label in pairs]
    assert row["one"] == pytest.approx(sum(right) / len(right))


def test_what_sums_adapters_names_the_task_and_what_to_type(own: Path, lab: Lab, tmp_path: Path) -> None:
    for mode in ("merged", "gated"):
        said = refused(IncompatibleError, "'one' has none: it is a hydralora adapter, which answers", api.compose,
                       own, ComposeConfig(mode=mode, tasks="one,two", device="cpu"))  # fmt: skip
        assert said.commands[0] == ("compose", "--mode", "routed")
    with_soft_answers = ComposeConfig(mode="routed", router="similarity", device="cpu")
    refused(IncompatibleError, "router 'similarity' sums adapters by their factors A and B, and task 'one' has none",
            api.compose, own, with_soft_answers)  # fmt: skip
    refused(IncompatibleError, "'one' has none", api.fold, own, ["one", "two"], "folded", FoldConfig(device="cpu"))
    refused(IncompatibleError, "'one' has none", api.compare, own, "two", "one")
    refused(IncompatibleError, "strategy 'olora' needs A and B", lab.add, own, "three")
    for options in ({}, {"merged": True}, {"check": "vllm"}):
        refused(ConfigError, "'one' is a hydralora adapter, which weighs its matrices B by the input", api.export, own,
                "one", tmp_path / "no", **options)  # fmt: skip
    assert not (tmp_path / "no").exists()
    said = refused(ConfigError, "no candidate can be trained", api.advise, own, lab.settings("three"),
                   AdviseConfig(variants=("hydralora",)))  # fmt: skip
    assert "--strategy isolated" in said.hint


def test_of_a_routed_composition_those_tasks_are_proposed_that_can_be_exported(own: Path, tmp_path: Path) -> None:
    api.compose(own, ComposeConfig(mode="routed", device="cpu", scores=False))
    said = refused(ConfigError, "it picks one of 2 adapters", api.export, own, "routed", tmp_path / "no")
    assert [tuple(command) for command in said.commands] == [("export", "two", "./two-adapter")]


def test_its_folder_is_not_imported_and_the_message_says_what_it_is(own: Path, lab: Lab) -> None:
    folder = own / "adapters" / digest_of(own, "one")
    said = refused(DataError, "is lorabank's own and stays in its bank", api.import_adapter, own, folder, "again",
                   config=lab.settings("one"), observer=SilentObserver())  # fmt: skip
    assert "--variant hydralora" in said.hint


def test_settings_that_do_not_fit_are_refused_before_training(lab: Lab, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    for match, changes in {
        "so the task answers alone": {"strategy": "olora"},
        "a penalty is about one A and one B": {"penalty": "norm"},
        "takes no start that is taken out of the weight": {"start": "pissa"},
        "--head shared": {"head": "shared"},
        "heads = '0': input should be greater than or equal to 1": {"set": ("heads=0",)},
        "word_embeddings is of the class Embedding": {"target_modules": "word_embeddings"},
        "its layers need every pass whole": {"savings": ("dropbp",)},
    }.items():
        refused(ConfigError, match, lab.add, bank, "one", **HYDRA | changes)
    assert not bank.exists()


def test_it_learns_and_answers_on_a_quantised_base(lab: Lab, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    api.init_bank(bank, InitConfig(base=str(lab.base), quantise="int8"))
    adapter = lab.add(bank, "one", **HYDRA, max_steps=4).adapter
    model = load_base(Bank.open(bank).snapshot().base).model
    head = load_file(bank / "adapters" / adapter.digest / "adapter_model.safetensors")
    weight, bias = (head[f"base_model.model.classifier.{name}"] for name in ("weight", "bias"))
    model.classifier = torch.nn.Linear(weight.shape[1], len(bias))
    model.classifier.weight.data, model.classifier.bias.data = weight, bias
    hook(bank, adapter.digest, model)
    (said,) = api.predict(bank, ["a b c"], PredictConfig(task="one", device="cpu"))
    ids = torch.tensor([[0, *(4 + ord(letter) - ord("a") for letter in "abc"), 2]])
    with torch.no_grad():
        shares = model.eval()(input_ids=ids).logits[0].softmax(-1)
    assert said.probability == pytest.approx(float(shares.max()), abs=1e-5)


def test_it_is_copied_checked_and_removed_as_any_task(own: Path, tmp_path: Path) -> None:
    adapter = digest_of(own, "one")
    ask = PredictConfig(task="one", device="cpu")
    before = api.predict(own, ["a b c"], ask)
    api.backup(own, tmp_path / "copy")
    assert api.predict(tmp_path / "copy", ["a b c"], ask) == before
    assert api.verify(own, full=True) == ()
    api.remove(own, "one")
    api.undo(own)
    assert api.predict(own, ["a b c"], ask) == before
    file = own / "adapters" / adapter / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.chmod(0o600)
    file.write_bytes(bytes(data))
    assert api.verify(own, full=True)
    with pytest.raises(DamagedError, match=f"{adapter}: adapter_model.safetensors has different content"):
        api.predict(own, ["a b c"], ask)


def test_the_settings_and_the_parameters_are_listed(lab: Lab, tmp_path: Path) -> None:
    adapter = lab.add(
        tmp_path / "bank", "one", **HYDRA | {"set": ("heads=2",)}, max_steps=1, learning_rate=None
    ).adapter
    assert adapter.config["learning_rate"] == 2e-4
    folder = tmp_path / "bank" / "adapters" / adapter.digest
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["heads"], config["r"]) == ("HYDRALORA", 2, R)
