"""A task of trained biases in one bank with others: in every mode of answering, into a folder of PEFT, and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, InitConfig, PredictConfig
from lorabank.core.errors import ConfigError, IncompatibleError
from lorabank.core.observer import SilentObserver
from lorabank.core.shelves import GATES, MERGERS
from tests.contract.conftest import TASKS, Lab
from tests.contract.test_variants import added_biases, answers, plain, probabilities
from tests.unit.workflows.language_models import add, bank_logits, own_state, peft_logits


def often(shelf: Any, *names: str) -> list[Any]:
    """The names of a shelf, of which these are tried each time and the others are slow tests."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in sorted(shelf)]


BITFIT: dict[str, Any] = {"variant": "bitfit", "strategy": "isolated", "learning_rate": 3e-2}
CLOSE = {"abs": 2e-5}
FULL_RANK = {"ties", "dare", "dare-ties", "magnitude-prune", "compeft", "fisher"}


@pytest.fixture(scope="module")
def mixed(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks that stand alone: factors on the weights whose biases the second one trains, and a row gain."""
    bank = Path(shutil.copytree(lab.bank("olora", 0), tmp_path_factory.mktemp("biases") / "bank"))
    lab.add(bank, "one", strategy="isolated", learning_rate=1e-2)
    lab.add(bank, "two", **BITFIT)
    lab.add(bank, "three", strategy="isolated", variant="dora", learning_rate=1e-2)
    return bank


@pytest.fixture
def bank(mixed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mixed, tmp_path / "bank"))


def digests(bank: Path) -> list[str]:
    snapshot = Bank.open(bank).snapshot()
    return [snapshot.adapter_of(task.name).digest for task in snapshot.tasks]


def test_every_bias_of_the_body_is_trained_and_no_weight(lab: Lab, mixed: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(lab.base)
    folder = mixed / "adapters" / digests(mixed)[1]
    added = added_biases(folder, base)
    assert set(added) == {
        name for name, _ in base.named_parameters() if name.endswith(".bias") and not name.startswith("classifier")
    }
    reached = [name for name, change in added.items() if not name.endswith("key.bias") and bool(change.any())]
    assert len(reached) == sum(not name.endswith("key.bias") for name in added)  # keys: softmax does not see theirs
    kept = load_file(folder / "bias.safetensors")
    for name, change in added.items():
        torch.testing.assert_close(kept[name].double(), change, atol=1e-6, rtol=0)
    (a, b) = (tensor for key, tensor in load_file(folder / "adapter_model.safetensors").items() if ".lora_" in key)
    assert not bool(a.any())
    assert not bool(b.any())


def test_routed_texts_of_several_tasks_share_a_pass(lab: Lab, bank: Path, texts: list[str]) -> None:
    api.compose(bank, ComposeConfig(mode="routed", router="kmeans", device="cpu", scores=False))
    found = api.predict(bank, texts, PredictConfig(composition="routed", device="cpu"))
    assert len({one.task for one in found}) > 1
    for text, one in zip(texts, found, strict=True):
        digest = digests(bank)[TASKS.index(one.task)]
        expected = probabilities(plain(lab, bank, {digest: 1.0}, digest), [text])
        assert [one.probability] == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("gate", often(GATES, "attention", "attention-token", "arrow"))
def test_a_gate_weighs_biases_as_all_else(bank: Path, texts: list[str], gate: str) -> None:
    """Its weights are those that it says; where it weighs module by module a bias has weights of its own."""
    settings = () if gate == "arrow" else ("epochs=1",)
    api.compose(bank, ComposeConfig(mode="gated", gate=gate, set=settings, stages="last", device="cpu", scores=False))
    together = answers(bank, texts, composition="gated", task="two")
    apart = [answers(bank, [text], composition="gated", task="two")[0] for text in texts]
    assert together == pytest.approx(apart, **CLOSE)
    assert together != pytest.approx(answers(bank, texts, task="one"), **CLOSE)


@pytest.mark.parametrize("merger", often(MERGERS, "weighted", "ties", "svd", "regmean"))
def test_a_merger_takes_biases_as_matrices_of_one_column(
    lab: Lab, bank: Path, texts: list[str], merger: str, tmp_path: Path
) -> None:
    """In the folder that is exported plain PEFT answers as the bank does."""
    api.compose(bank, ComposeConfig(mode="merged", merger=merger, tasks="one,two", device="cpu", scores=False))
    found = answers(bank, texts, composition="merged", task="two")
    if merger in FULL_RANK:
        with pytest.raises(ConfigError, match="full rank"):
            api.export(bank, "merged", tmp_path / "sum")
        return
    api.export(bank, "merged", tmp_path / "sum")
    loaded = peft.PeftModel.from_pretrained(plain(lab, bank, {}, digests(bank)[1]), tmp_path / "sum").eval()
    assert probabilities(loaded, texts) == pytest.approx(found, **CLOSE)


@pytest.mark.parametrize("above", [False, True])
def test_an_exported_folder_is_imported_again(
    lab: Lab, copy: Any, texts: list[str], tmp_path: Path, above: bool
) -> None:
    """That of biases alone, and one with factors on weights beside them, of a task learnt above another."""
    bank, folder, other = copy("olora", int(above)), tmp_path / "folder", tmp_path / "other"
    lab.add(bank, "two", **BITFIT | {"strategy": "inclora"})
    api.export(bank, "two", folder)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["bias"], len(config["target_modules"])) == ("all", 4 if above else 1)
    settings, init = lab.settings("two"), InitConfig(base=str(lab.base))
    labels = Bank.open(bank).snapshot().task("two").labels
    api.import_adapter(other, folder, "back", config=settings, init=init, labels=labels, observer=SilentObserver())
    assert Bank.open(other).verify(full=True) == []
    assert answers(other, texts, task="back") == pytest.approx(answers(bank, texts, task="two"), **CLOSE)


@pytest.mark.parametrize("which", ["lora_only", "all"])
def test_biases_that_peft_trained_are_imported(lab: Lab, texts: list[str], which: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(lab.base, num_labels=2)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], bias=which)
    trained = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    trained.save_pretrained(tmp_path / "folder")
    expected = probabilities(trained.eval(), texts)
    bank = tmp_path / "bank"
    settings, init = lab.settings("one"), InitConfig(base=str(lab.base))
    api.import_adapter(bank, tmp_path / "folder", "guest", config=settings, init=init, observer=SilentObserver())
    assert answers(bank, texts, task="guest") == pytest.approx(expected, **CLOSE)


def test_a_whole_model_has_the_biases(lab: Lab, bank: Path, texts: list[str], tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    api.export(bank, "two", tmp_path / "whole", merged=True)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    assert probabilities(model, texts) == pytest.approx(answers(bank, texts, task="two"), **CLOSE)


@pytest.mark.parametrize("size", [32, 64])
def test_a_whole_model_of_a_base_with_zero_points_has_them(lab: Lab, tmp_path: Path, size: int) -> None:
    """Modules have 32 inputs, which no group of 64 divides; biases need none."""
    bank = tmp_path / "bank"
    api.init_bank(bank, InitConfig(base=str(lab.base), quantise=f"hqq:group_size={size}"))
    lab.add(bank, "two", **BITFIT)
    api.export(bank, "two", tmp_path / "whole", merged=True)
    api.export(bank, "two", tmp_path / "folder")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    biases = load_file(tmp_path / "folder" / "adapter_model.safetensors")
    name = "bert.encoder.layer.1.output.dense.bias"
    torch.testing.assert_close(whole[name], biases[f"base_model.model.{name}"])


def test_a_copy_overlaps_wholly(bank: Path, lab: Lab, tmp_path: Path) -> None:
    """Beside the biases lie factors of 0, which overlap in nothing and count for nothing."""
    api.export(bank, "two", tmp_path / "copy", own=True)
    api.import_adapter(bank, tmp_path / "copy", "copy", config=lab.settings("two"))
    found = api.compare(bank, "two", "copy")
    assert found.relation == "same factors"
    assert (found.input_overlap, found.output_overlap) == (pytest.approx(1), pytest.approx(1))


def test_a_base_without_biases_is_refused_in_one_line(make_lab: Any, tmp_path: Path) -> None:
    lab: Lab = make_lab("llama")
    with pytest.raises(IncompatibleError, match="LlamaForCausalLM has no biases to train") as caught:
        lab.add(tmp_path / "bank", "one", **BITFIT)
    assert caught.value.unchanged == "nothing was changed"
    assert not (tmp_path / "bank").exists()


def test_a_language_model_with_a_fused_matrix(make_language_model: Any, tmp_path: Path) -> None:
    """GPT-2 keeps its weights transposed, and the biases of query, key and value as one."""
    base, bank = make_language_model("gpt2", initializer_range=0.2), tmp_path / "bank"
    add(bank, base, "one", ("no", "yes"), 0, r=2, lora_alpha=4.0)
    add(bank, base, "two", ("one", "three", "two"), 1, **BITFIT | {"strategy": "inclora"})
    api.export(bank, "two", tmp_path / "two", state="learnt")
    for ours, theirs in zip(
        bank_logits(bank, own_state(bank, "two")), peft_logits(base, tmp_path / "two"), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    with pytest.raises(IncompatibleError, match="bias 'all': it takes none") as caught:
        api.export(bank, "two", tmp_path / "served", check="vllm")
    assert ("compose", "--mode", "manual") not in [
        tuple(one[:3]) for one in caught.value.commands
    ]  # a sum has them too
    with pytest.raises(
        ConfigError, match=r"target_modules c_attn.q cannot .* modules with a bias are c_attn, "
    ) as caught:
        add(bank, base, "three", ("no", "yes"), 2, target_modules="c_attn.q", **BITFIT)
    assert caught.value.unchanged == "nothing was changed"
