"""PEFT's own tuners as tasks: trained, stored and exported as PEFT has them, answering as plain PEFT does."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from functools import partial
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
from lorabank.core.errors import ConfigError, IncompatibleError, LorabankError
from lorabank.core.observer import SilentObserver
from lorabank.core.shelves import TUNERS
from lorabank.exchange.tuners.folder import read_tuner
from lorabank.models.tuners.library import delta_weights
from tests.contract.conftest import Lab
from tests.contract.tuners import SMALL, name_of, peft_folder

OF_LORA = {"r": 8, "lora_alpha": 32.0}
"""Their defaults, which the tiny banks change."""
IDS = [0, 5, 9, 17, 22, 2]


def settings(variant: str) -> dict[str, Any]:
    return {**OF_LORA, "strategy": "isolated", "variant": variant, "set": SMALL[variant]}


@pytest.fixture(scope="module")
def bank(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank with a task of every tuner and one of LoRA; tests only read it."""
    path = tmp_path_factory.mktemp("tuners") / "bank"
    for variant in TUNERS.table:
        init = InitConfig(base=str(lab.base))
        config = lab.settings("one", **settings(variant), max_steps=3)
        api.add_task(path, name_of(variant), config, init=init, observer=SilentObserver())
    lab.add(path, "two", strategy="isolated")
    return path


@pytest.fixture
def own(bank: Path, tmp_path: Path) -> Path:
    """The same to change."""
    return Path(shutil.copytree(bank, tmp_path / "own"))


@pytest.fixture(scope="module")
def theirs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``theirs(variant)``: what plain PEFT saves of a tuner with random numbers, on the encoder."""
    return partial(peft_folder, lab.base, tmp_path_factory.mktemp("theirs"), head=True)


def plain(base: Path, folder: Path) -> Any:
    """What plain PEFT loads of a folder."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if config["task_type"] == "CAUSAL_LM":
            model = AutoModelForCausalLM.from_pretrained(base)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        return PeftModel.from_pretrained(model, folder).eval()


@torch.no_grad()
def logits(model: Any, ids: list[int] = IDS) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0]


def spelt(text: str) -> list[int]:
    return [0, *(4 + ord(letter) - ord("a") for letter in text.split()), 2]


def refused(kind: type[LorabankError], match: str, call: Callable[..., object], *args: Any, **options: Any) -> Any:
    with pytest.raises(kind, match=match) as caught:
        call(*args, **options)
    assert "\n" not in caught.value.message
    assert caught.value.unchanged
    assert caught.value.commands or caught.value.hint
    return caught.value


@pytest.mark.by_turns
@pytest.mark.parametrize("variant", TUNERS.table)
def test_a_trained_task_answers_as_plain_peft_does_with_its_folder(bank: Path, lab: Lab, variant: str) -> None:
    name, texts = name_of(variant), ["a b c", "x y z", "n o p q"]
    adapter = Bank.open(bank).snapshot().adapter_of(name)
    assert (adapter.metrics["tuner"], adapter.strategy, adapter.context) == (variant, "isolated", ())
    model = plain(lab.base, bank / "adapters" / adapter.digest)
    assert model.peft_config["default"].peft_type.value == name.upper()
    said = api.predict(bank, texts, PredictConfig(task=name, device="cpu"))
    for text, one in zip(texts, said, strict=True):
        shares = logits(model, spelt(text)).softmax(-1)
        assert one.adapters == {name: 1.0}
        assert one.label == f"part{int(shares.argmax())}"
        assert one.probability == pytest.approx(float(shares.max()), abs=1e-5)


@pytest.mark.parametrize("variant", TUNERS.table)
def test_a_folder_of_peft_comes_in_and_goes_out_as_it_was(
    lab: Lab, own: Path, theirs: Callable[[str], Path], tmp_path: Path, variant: str
) -> None:
    folder, out = theirs(variant), tmp_path / "out"
    api.import_adapter(own, folder, "guest", config=lab.settings("one"), observer=SilentObserver())
    api.export(own, "guest", out)
    before, after = (load_file(one / "adapter_model.safetensors") for one in (folder, out))
    assert before.keys() == after.keys()
    wanted = logits(plain(lab.base, folder))
    torch.testing.assert_close(logits(plain(lab.base, out)), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", TUNERS.table)
def test_the_delta_weights_of_a_language_model_give_plain_pefts_logits(
    make_lab: Callable[[str], Lab], tmp_path: Path, variant: str
) -> None:
    base = make_lab("llama").base
    folder = peft_folder(base, tmp_path, variant, head=False)
    model = plain(base, folder)
    wanted = logits(model)
    with model.disable_adapter():
        bare = logits(model)
    state, _ = read_tuner(folder)
    names = [name for name, _ in model.base_model.model.named_modules() if name.endswith(("q_proj", "v_proj"))]
    state.config["target_modules"] = names
    fresh = type(model.base_model.model).from_pretrained(base).eval()
    delta = delta_weights(state, lambda name: fresh.get_submodule(name).weight).delta
    with torch.no_grad():
        for name, change in delta.items():
            fresh.get_submodule(name).weight += change
    torch.testing.assert_close(logits(fresh), wanted, rtol=0, atol=1e-5)
    assert float((wanted - bare).abs().max()) > 1e-4


def test_a_language_model_learns_and_writes_with_one(make_lab: Callable[[str], Lab], tmp_path: Path) -> None:
    lab, bank = make_lab("llama"), tmp_path / "bank"
    lab.add(bank, "one", **settings("peft:hra"), max_steps=3)
    folder = bank / "adapters" / Bank.open(bank).snapshot().adapter_of("one").digest
    model = plain(lab.base, folder)
    (said,) = api.generate(bank, ["a b c"], GenerateConfig(task="one", device="cpu", max_new_tokens=4, raw=True))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(lab.base)
    ids = tokenizer("a b c", return_tensors="pt")["input_ids"]
    wanted = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert said.label == tokenizer.decode(wanted, skip_special_tokens=True)


def test_a_router_sends_texts_to_them_and_to_ordinary_tasks(own: Path, texts: list[str]) -> None:
    members = ["loha", "oft", "two"]
    made = api.compose(own, ComposeConfig(mode="routed", tasks=",".join(members), device="cpu"))
    assert list(made.composition.members) == members
    routed = api.predict(own, texts, PredictConfig(composition="routed", device="cpu"))
    assert len({one.task for one in routed}) > 1
    for text, one in zip(texts, routed, strict=True):
        (alone,) = api.predict(own, [text], PredictConfig(task=one.task, device="cpu"))
        assert (one.label, one.adapters) == (alone.label, {one.task: 1.0})
        assert one.probability == pytest.approx(alone.probability, abs=1e-6)
    soft = ComposeConfig(mode="routed", tasks="loha,two", router="similarity", name="soft", device="cpu")
    refused(IncompatibleError, "answers alone or routed", api.compose, own, soft)


def test_modules_that_only_one_of_them_changes_leave_other_texts_alone(own: Path, lab: Lab, texts: list[str]) -> None:
    lab.add(own, "three", strategy="isolated")
    wanted = {name: api.predict(own, texts, PredictConfig(task=name, device="cpu")) for name in ("two", "three")}
    lab.add(own, "one", **settings("peft:hra"), max_steps=3, target_modules="all-linear")
    members = "one,two,three"
    api.compose(own, ComposeConfig(mode="routed", tasks=members, router="kmeans", device="cpu"))
    routed = api.predict(own, texts, PredictConfig(composition="routed", device="cpu"))
    assert {"two", "three"} <= {one.task for one in routed}
    for i, one in enumerate(routed):
        if one.task in wanted:
            assert one.label == wanted[one.task][i].label
            assert one.probability == pytest.approx(wanted[one.task][i].probability, abs=1e-6)


def test_a_quantised_base_takes_none(lab: Lab, theirs: Callable[[str], Path], tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    api.init_bank(bank, InitConfig(base=str(lab.base), quantise="int8"))
    refused(ConfigError, "the base is quantised", lab.add, bank, "one", **settings("peft:loha"))
    config = lab.settings("one")
    refused(IncompatibleError, "base is quantised", api.import_adapter, bank, theirs("peft:loha"), "x", config=config)


def test_the_matrix_has_their_scores(own: Path, lab: Lab) -> None:
    (report,) = api.evaluate(own, EvalConfig(device="cpu"))
    snapshot = Bank.open(own).snapshot()
    row = dict(zip(report.tasks, report.values[-1], strict=True))
    rows = [json.loads(line) for line in lab.data("one").read_text().splitlines()]
    model = plain(lab.base, own / "adapters" / snapshot.adapter_of("oft").digest)
    from lorabank.data.formats.parquet import from_parquet

    blob = snapshot.dataset("oft", "eval").blob
    kept = from_parquet(Bank.open(own).read_blob(blob))
    assert set(kept.texts) <= {one["text"] for one in rows}
    right = [
        f"part{int(logits(model, spelt(text)).argmax())}" == label
        for text, label in zip(kept.texts, kept.labels, strict=True)
    ]
    assert row["oft"] == pytest.approx(sum(right) / len(right))


def test_what_sums_adapters_names_the_task_and_what_to_type(own: Path, lab: Lab, tmp_path: Path) -> None:
    for mode in ("merged", "gated"):
        said = refused(IncompatibleError, "'loha' has none: it is a peft:loha of PEFT", api.compose, own,
                       ComposeConfig(mode=mode, tasks="loha,two", device="cpu"))  # fmt: skip
        assert said.exit_code == 5
        assert list(said.commands) == [("compose", "--mode", "routed"), ("compose", "--mode", mode, "--tasks", "two")]
    refused(IncompatibleError, "'loha' has none", api.fold, own, ["loha", "two"], "folded", FoldConfig(device="cpu"))
    refused(IncompatibleError, "'oft' has none", api.compare, own, "two", "oft")
    with pytest.raises(ConfigError, match="strategy 'olora' needs A and B of every earlier adapter"):
        api.advise(own, lab.settings("three"), AdviseConfig(variants=("lora-xs",), starts=("kaiming",)))
    said = refused(IncompatibleError, "strategy 'olora' needs A and B", lab.add, own, "three")
    assert "--strategy isolated" in said.hint
    assert lab.add(own, "three", strategy="isolated").task.position == len(TUNERS.table) + 2
    refused(ConfigError, "'hra' is a peft:hra of PEFT", api.export, own, "hra", tmp_path / "no", check="vllm")


@pytest.mark.parametrize("name", ["oft", "loha"])
def test_a_whole_model_answers_as_plain_peft_does(bank: Path, lab: Lab, tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForSequenceClassification

    api.export(bank, name, tmp_path / "out", merged=True)
    adapter = Bank.open(bank).snapshot().adapter_of(name)
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    expected = logits(plain(lab.base, bank / "adapters" / adapter.digest))
    torch.testing.assert_close(logits(whole), expected, atol=1e-5, rtol=1e-5)


def test_settings_that_do_not_fit_are_refused_before_training(lab: Lab, tmp_path: Path) -> None:
    bank, loha = tmp_path / "bank", settings("peft:loha")
    add = partial(lab.add, bank, "one")
    refused(ConfigError, "there is no setting 'rank'", add, **loha | {"set": ("peft:loha.rank=2",)})
    refused(ConfigError, "r = '5000': input should be less than or equal to 1024", add, **loha | {"set": ("r=5000",)})
    refused(ConfigError, "PEFT refuses the settings of variant 'peft:c3a': .*block size", add,
            **settings("peft:c3a") | {"set": ("block_size=7",)})  # fmt: skip
    refused(ConfigError, "--r is of A and B", add, **loha | {"r": 4})
    refused(ConfigError, "--lora-dropout is of A and B", add, **loha | {"lora_dropout": 0.3})
    refused(ConfigError, "so the task answers alone", add, **loha | {"strategy": "olora"})
    refused(ConfigError, "a penalty is about A and B", add, **loha | {"penalty": "norm"})
    refused(ConfigError, "the start would have no effect", add, **loha | {"start": "pissa"})
    refused(ConfigError, "--head shared", add, **loha | {"head": "shared"})
    refused(ConfigError, "word_embeddings is of the class Embedding", add,
            **loha | {"target_modules": "word_embeddings"})  # fmt: skip
    assert not bank.exists()


class Stop(SilentObserver):
    """Ctrl-C after three steps of training, when a checkpoint of the second one is there."""

    def advance(self, done: int, values: object) -> None:
        if done == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("variant", ["peft:oft", "peft:shira"])
def test_the_same_seed_gives_the_same_bytes_resumed_or_not(lab: Lab, tmp_path: Path, variant: str) -> None:
    steps = settings(variant) | {"max_steps": 4, "save_steps": 2}
    whole = lab.add(tmp_path / "whole", "one", **steps).adapter
    with pytest.raises(KeyboardInterrupt):
        lab.add(tmp_path / "stopped", "one", Stop(), **steps)
    resumed = api.add_task(tmp_path / "stopped", "one", None, resume=True, observer=SilentObserver()).adapter
    assert (resumed.digest, dict(resumed.objects)) == (whole.digest, dict(whole.objects))
    other = lab.add(tmp_path / "other", "one", **steps | {"seed": 1}).adapter
    assert other.digest != whole.digest


def test_as_lora_is_the_best_approximation_of_its_rank(
    lab: Lab, own: Path, theirs: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, config = theirs("peft:loha"), lab.settings("one")
    cut = api.import_adapter(own, folder, "cut", config=config, as_lora=3, observer=SilentObserver()).adapter
    model, merged = plain(lab.base, folder), plain(lab.base, folder).merge_and_unload()
    lost = total = 0.0
    for name, module in merged.named_modules():
        if name.endswith(("query", "value")):
            before = model.base_model.model.get_submodule(name).base_layer.weight
            values = torch.linalg.svdvals((module.weight - before).detach().double()).square()
            lost, total = lost + float(values[3:].sum()), total + float(values.sum())
    assert cut.metrics["as_lora"]["relative_error"] == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    assert (cut.r, "tuner" in cut.metrics) == (3, False)
    for rank in (-1, 0, 1025):
        with pytest.raises(ConfigError, match=f"^--as-lora {rank} is not a rank from 1 to 1024$"):
            api.import_adapter(own, folder, "no", config=config, as_lora=rank, observer=SilentObserver())
    api.import_adapter(own, folder, "whole", config=config, as_lora=32, observer=SilentObserver())
    api.export(own, "whole", tmp_path / "out")
    wanted = logits(model)
    torch.testing.assert_close(logits(plain(lab.base, tmp_path / "out")), wanted, rtol=0, atol=1e-5)
    assert api.compose(own, ComposeConfig(mode="merged", tasks="whole,two", device="cpu", scores=False))
    api.export(own, "two", tmp_path / "two")
    again = partial(api.import_adapter, own, tmp_path / "two", "again", config=lab.settings("two"))
    refused(ConfigError, "an adapter of factors already", again, as_lora=2)
