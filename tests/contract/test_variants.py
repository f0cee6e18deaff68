"""A task of any variant and start: plain PEFT loads it, it sums with others, and resumed it has the same bytes."""

from __future__ import annotations

import copy as copies
import json
import re
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, InitConfig, PredictConfig, TrainConfig
from lorabank.core.errors import ConfigError, DivergedError
from lorabank.core.methods import methods
from lorabank.core.observer import SilentObserver
from lorabank.core.shelves import SAVINGS, STARTS, STRATEGIES, VARIANTS
from lorabank.training.methods import chosen_methods, filled_in
from lorabank.workflows.learning.past import restart_command
from tests.contract.conftest import Lab


def reason(**config: Any) -> str | None:
    try:
        chosen_methods(TrainConfig(**config))
    except ConfigError as error:
        return error.message
    return None


def usual(variant: str, start: str = "kaiming") -> str | None:
    """The default strategy, or the first one that takes them; None where none does."""
    names = [TrainConfig.strategy, *STRATEGIES]
    return next((name for name in names if not reason(strategy=name, variant=variant, start=start)), None)


SMALL = {"qa-lora": ("qa-lora.group=8",)}
"""Settings of a method whose default is not for a base of 32 inputs: their mean is 0 behind a normalisation."""

PAIRS = [(v, s) for v in VARIANTS for s in STARTS if (v, s) != ("lora", "kaiming") and usual(v, s)]


def _once(variant: str, start: str) -> Any:
    """Every variant with the first start it takes, and every start with plain LoRA; all other pairs are slow tests."""
    often = variant == "lora" or start == next(s for v, s in PAIRS if v == variant)
    return pytest.param((variant, start), id=f"{variant}-{start}", marks=() if often else pytest.mark.slow)


@pytest.fixture(params=[_once(*pair) for pair in PAIRS])
def method(request: pytest.FixtureRequest) -> dict[str, str]:
    variant, start = request.param
    strategy = usual(variant, start)
    assert strategy is not None
    settings = {"learning_rate": 1e-2, "set": SMALL.get(variant, ())}
    return {"variant": variant, "start": start, "strategy": strategy, **settings}


def deltas(folder: Path, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``W' - W`` by module in float64, from PEFT's equations and its two files alone."""
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    found = {}
    for key, a in tensors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        alpha = _by_pattern(config["alpha_pattern"], module, config["lora_alpha"])
        assert len(a) == _by_pattern(config["rank_pattern"], module, config["r"])
        W, BA = weights[module].double(), tensors[key.replace("lora_A", "lora_B")].double() @ a.double()
        moved = W + alpha / len(a) * BA
        if config.get("use_dora"):
            m = tensors[key.replace("lora_A.weight", "lora_magnitude_vector")].double()
            moved = (m / moved.norm(dim=1))[:, None] * moved
        found[module] = moved - W
    return found


def added_biases(folder: Path, base: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What is added to biases by parameter, from PEFT's file and the base's own biases."""
    found = {}
    for key, bias in load_file(folder / "adapter_model.safetensors").items():
        name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if name.endswith(".bias") and not name.startswith("classifier."):
            found[name] = bias.double() - base.get_parameter(name).double()
    return found


def _by_pattern(pattern: dict[str, float], module: str, default: float) -> float:
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def plain(lab: Lab, bank: Path, shares: dict[str, float], head_of: str) -> torch.nn.Module:
    """The base with a head and the weighted sum of adapters in its weights."""
    from transformers import AutoModelForSequenceClassification

    tensors = load_file(bank / "adapters" / head_of / "adapter_model.safetensors")
    weight, bias = (tensors[f"base_model.model.classifier.{name}"] for name in ("weight", "bias"))
    model = AutoModelForSequenceClassification.from_pretrained(lab.base, num_labels=len(bias)).eval()
    modules = {
        name: module.weight.detach().clone() for name, module in model.named_modules() if hasattr(module, "weight")
    }
    untouched = copies.deepcopy(model)
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
        for digest, share in shares.items():
            for module, delta in deltas(bank / "adapters" / digest, modules).items():
                model.get_submodule(module).weight.add_(share * delta.float())
            for name, delta in added_biases(bank / "adapters" / digest, untouched).items():
                model.get_parameter(name).add_(share * delta.float())
    return model


@torch.no_grad()
def probabilities(model: torch.nn.Module, texts: list[str]) -> list[float]:
    found = []
    for text in texts:
        ids = [0, *(4 + ord(letter) - ord("a") for letter in text.split()), 2]
        found.append(float(model(input_ids=torch.tensor([ids])).logits[0].softmax(-1).max()))
    return found


def answers(bank: Path, texts: list[str], **config: Any) -> list[float]:
    return [each.probability for each in api.predict(bank, texts, PredictConfig(device="cpu", **config))]


def test_plain_peft_loads_what_was_trained(lab: Lab, copy, texts: list[str], method: dict[str, str]) -> None:
    bank = copy("olora", 0)
    trained = lab.add(bank, "one", **method).adapter
    assert Bank.open(bank).verify(full=True) == []
    assert (trained.config["variant"], trained.config["start"]) == (method["variant"], method["start"])
    model = plain(lab, bank, {}, trained.digest)
    loaded = peft.PeftModel.from_pretrained(model, bank / "adapters" / trained.digest).eval()
    expected = probabilities(loaded, texts)
    assert answers(bank, texts, task="one") == pytest.approx(expected, abs=1e-5)
    bare = plain(lab, bank, {}, trained.digest)
    assert max(abs(a - b) for a, b in zip(expected, probabilities(bare, texts), strict=True)) > 1e-3


def test_tasks_of_any_variants_sum(lab: Lab, copy, texts: list[str], method: dict[str, str], tmp_path: Path) -> None:
    """A plain task, this one over it and a plain one over both; then a weighted sum, answered and exported."""
    bank = copy("olora", 1)
    (one,) = (adapter.digest for adapter in Bank.open(bank).snapshot().adapters.values())
    two = lab.add(bank, "two", **method).adapter
    three = lab.add(bank, "three", learning_rate=1e-2).adapter
    assert (two.context, three.context) == ((one,), (one, two.digest))
    digests = [one, two.digest, three.digest]
    for task, known in (("two", digests[:2]), ("three", digests)):
        model = plain(lab, bank, dict.fromkeys(known, 1.0), known[-1])
        assert answers(bank, texts, task=task, state="learnt") == pytest.approx(probabilities(model, texts), abs=2e-5)
    api.compose(bank, ComposeConfig(mode="merged", weights="one=0.5,two=0.7,three=-0.2", device="cpu"))
    model = plain(lab, bank, dict(zip(digests, (0.5, 0.7, -0.2), strict=True)), two.digest)
    expected = probabilities(model, texts)
    assert answers(bank, texts, composition="merged", task="two") == pytest.approx(expected, abs=2e-5)
    api.export(bank, "merged", tmp_path / "sum")
    bare = plain(lab, bank, {}, two.digest)
    loaded = peft.PeftModel.from_pretrained(bare, tmp_path / "sum").eval()
    assert probabilities(loaded, texts) == pytest.approx(expected, abs=2e-5)


class Stop(SilentObserver):
    def advance(self, done: int, values: object) -> None:
        if done == 3:
            raise KeyboardInterrupt


def test_a_resumed_training_gives_the_same_bytes(lab: Lab, copy, method: dict[str, str], tmp_path: Path) -> None:
    bank = copy("olora", 1)
    other = Path(shutil.copytree(bank, tmp_path / "other"))
    with pytest.raises(KeyboardInterrupt):
        lab.add(bank, "two", Stop(), save_steps=2, **method)
    resumed = api.add_task(bank, "two", None, resume=True).adapter
    whole = lab.add(other, "two", save_steps=2, **method).adapter
    assert (resumed.digest, resumed.head_digest) == (whole.digest, whole.head_digest)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"strategy": "olora-projected", "variant": "dora"}, "a row gain reads all inputs"),
        ({"strategy": "inflora", "variant": "dora"}, "a row gain reads all inputs"),
        ({"strategy": "olora-projected", "start": "pissa"}, "which the start's part reads too"),
        ({"strategy": "amlora", "variant": "dora"}, "weighs only low-rank parts"),
        ({"strategy": "amlora", "start": "pissa"}, "what the start takes out of the weight"),
        ({"strategy": "seqlora", "variant": "dora"}, "and the bank has only its A and B"),
        ({"strategy": "ewc", "start": "pissa"}, "the start would have no effect"),
        ({"variant": "dora", "start": "pissa"}, "takes no start that is taken out of the weight"),
        ({"strategy": "inflora", "start": "lora-ga"}, "which the start's part reads too"),
        ({"strategy": "seqlora", "start": "corda"}, "the start would have no effect"),
        ({"variant": "dora", "start": "milora"}, "takes no start that is taken out of the weight"),
        ({"start": "corda", "set": ("mode=kpm",)}, "keeps the knowledge of a text, and none is given"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_changed(
    lab: Lab, tmp_path: Path, config, why
) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        lab.add(tmp_path / "bank", "one", **config)
    assert "nothing was changed" in caught.value.unchanged
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_takes_every_pair_or_says_why_not(strategy: str) -> None:
    for variant in VARIANTS:
        for start in STARTS:
            told = reason(strategy=strategy, variant=variant, start=start)
            assert told is None or "do not go together: " in told
    assert reason(strategy=strategy) is None
    assert reason(strategy=strategy, variant="lora-plus") is None


@pytest.mark.parametrize(
    "config", [{"variant": "bitfit"}, {"variant": "hydralora"}, {"strategy": "inflora", "variant": "dora"}]
)
def test_the_strategies_that_a_refusal_proposes_take_it(config: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="do not go together") as caught:
        chosen_methods(TrainConfig(data="", **config))
    before, _, proposed = (caught.value.hint or "").partition("use --strategy ")
    assert not before
    assert [reason(**config | {"strategy": one}) for one in proposed.split(" or ")] in ([None], [None] * 3)


def test_a_rank_that_the_start_has_not_is_refused_before_a_bank_is_made(lab: Lab, copy, tmp_path: Path) -> None:
    """The tiny base's weights have 32 singular values."""

    def plan(bank: Path, task: str, **config: Any) -> None:
        api.plan_task(bank, task, lab.settings(task, **config), InitConfig(base=str(lab.base)))

    old = copy("olora", 1)
    for run in (lab.add, plan):
        with pytest.raises(ConfigError, match=r"query has 32 singular values, .* from 1 to 33") as caught:
            run(tmp_path / "new", "one", start="pissa", r=33)
        assert caught.value.unchanged == "nothing was changed"
        assert not (tmp_path / "new").exists()
        with pytest.raises(ConfigError, match="from 21 to 40"):
            run(old, "two", start="pissa", r=20, set=("pissa.components=next",))


@pytest.mark.by_turns
@pytest.mark.parametrize(("kind", "targets"), [("bert", "auto"), ("gpt2", "c_attn.q,c_attn.v")])
def test_a_dry_run_tells_the_size_of_what_is_stored(
    make_lab, tmp_path: Path, method: dict[str, str], kind: str, targets: str
) -> None:
    """Of PiSSA both halves, of DoRA magnitudes and gains, of a block the columns of the whole matrix.

    Where a variant prunes, the size is what is stored at most.
    """
    lab = make_lab(kind)
    if VARIANTS.load(method["variant"]).biases:
        targets = targets.replace("c_attn.q,c_attn.v", "c_attn")  # a block has no bias of its own
    settings = {"r": 8, "target_modules": targets, **method}
    plan = api.plan_task(tmp_path / "bank", "one", lab.settings("one", **settings), InitConfig(base=str(lab.base)))
    stored = lab.add(tmp_path / "bank", "one", **settings).adapter
    files = (tmp_path / "bank" / "adapters" / stored.digest).glob("*.safetensors")
    tensors = sum(tensor.numel() for file in files for tensor in load_file(file).values())
    prunes = VARIANTS.load(method["variant"]).prunes
    assert plan.adapter_bytes >= 4 * tensors if prunes else plan.adapter_bytes == 4 * tensors


@pytest.mark.parametrize("saving", sorted(SAVINGS))
def test_a_saving_trains_what_is_stored_and_resumed(make_lab, texts: list[str], saving: str, tmp_path: Path) -> None:
    """Behind an earlier task; a killed training goes on, and of a classifier plain PEFT answers as the bank does."""
    kind = "llama" if saving == "s2-attention" else "bert"
    lab: Lab = make_lab(kind)
    bank, other = (Path(shutil.copytree(lab.bank("olora", 1), tmp_path / name)) for name in ("one", "other"))
    settings: dict[str, Any] = {"savings": (saving,), "save_steps": 2, "target_modules": "all-linear"}
    if kind == "llama":
        settings["set"] = ("shortest=4",)
    with pytest.raises(KeyboardInterrupt):
        lab.add(bank, "two", Stop(), **settings)
    resumed = api.add_task(bank, "two", None, resume=True).adapter
    whole = lab.add(other, "two", **settings).adapter
    assert (resumed.digest, resumed.head_digest) == (whole.digest, whole.head_digest)
    assert tuple(whole.config["savings"]) == (saving,)
    if kind == "bert":
        model = plain(lab, bank, dict.fromkeys((*whole.context, whole.digest), 1.0), whole.digest)
        assert answers(bank, texts, task="two", state="learnt") == pytest.approx(probabilities(model, texts), abs=2e-5)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_the_knowledge_of_a_text_is_kept_in_every_kind_of_base(make_lab, kind: str, tmp_path: Path) -> None:
    """Of a classifier, a language model and an encoder-decoder; another text gives another adapter."""
    lab: Lab = make_lab(kind)
    digests = []
    for name, lines in (("one", "a b c\nd e f g\n"), ("same", "a b c\n\nd e f g"), ("other", "x y z\nv w\n")):
        text = tmp_path / f"{name}.txt"
        text.write_text(lines, encoding="utf-8")
        bank = Path(shutil.copytree(lab.bank("olora", 0), tmp_path / name))
        trained = lab.add(bank, "one", start="corda", set=("mode=kpm", f"text={text}")).adapter
        assert Bank.open(bank).verify(full=True) == []
        digests.append(trained.digest)
    assert digests[0] == digests[1] != digests[2]


def test_what_methods_lists_as_refused_is_what_is_refused() -> None:
    """Of each variant and start, beside the defaults of everything else, and the strategy that a variant goes with.

    A variant also lists its savings.
    """
    for family, shelf in (("variant", VARIANTS), ("start", STARTS)):
        other, names = ("start", STARTS) if family == "variant" else ("variant", VARIANTS)
        for name in shelf:
            (found,) = (one for one in methods(name) if one.family == family)
            told = {f"strategy {one}": reason(**{family: name, "strategy": one}) for one in STRATEGIES}
            for one in names:
                strategy = usual(name if family == "variant" else one) or TrainConfig.strategy
                told[f"{other} {one}"] = reason(**{family: name, other: one, "strategy": strategy})
            for one in SAVINGS if family == "variant" else ():
                told[f"saving {one}"] = reason(variant=name, strategy=usual(name), savings=(one,))
            expected = [f"{what}: {why.partition('go together: ')[2]}" for what, why in told.items() if why]
            assert list(found.refused) == expected


def test_the_rate_that_a_variant_has_by_default_is_planned_and_recorded(lab: Lab, copy) -> None:
    """And a run without one is resumed without one, or with the same."""
    bank, settings = copy("olora", 1), {"variant": "lora-fa", "learning_rate": None, "save_steps": 2}
    assert api.plan_task(bank, "two", lab.settings("two", **settings)).settings["learning_rate"] == 4e-3
    with pytest.raises(KeyboardInterrupt):
        lab.add(bank, "two", Stop(), **settings)
    with pytest.raises(ConfigError, match="learning_rate differ"):
        api.add_task(bank, "two", lab.settings("two", **settings | {"learning_rate": 1e-3}), resume=True)
    resumed = api.add_task(bank, "two", lab.settings("two", **settings), resume=True).adapter
    assert resumed.config["learning_rate"] == 4e-3
    with pytest.raises(DivergedError, match="with the learning rate 1e-30 every"):
        lab.add(bank, "three", **settings | {"learning_rate": 1e-30})


def test_a_command_to_start_again_names_the_rate_that_was_given() -> None:
    for given in (None, 4e-3, 3e-5):
        config = filled_in(TrainConfig(data="d.jsonl", variant="lora-fa", learning_rate=given))
        words = restart_command("two", config, restart=True)
        assert ("--learning-rate" in words) == (given == 3e-5)
