"""The tensors say what is adapted: every form in which PEFT and its users say it too is read as PEFT reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from lorabank.core.errors import DataError
from lorabank.exchange.adapted_modules import Pattern, read_targets
from lorabank.exchange.config_fields import parse
from lorabank.exchange.expressions import Unreadable
from lorabank.exchange.fit_check import check_fits
from lorabank.exchange.tensor_names import plain_keys
from lorabank.exchange.untrusted_adapter import ForeignAdapter, read_foreign
from lorabank.models.bases.loading import LoadedBase, describe_base, load_base
from lorabank.models.bases.resolving import resolve_base
from tests.unit.exchange.test_untrusted_adapter import QUERY, good_config, good_tensors, read

PREFIX = "base_model.model."
NAMES = ["query", "value"]
FORMS: dict[str, dict[str, Any]] = {
    "one layer": {"target_modules": NAMES, "layers_to_transform": 1},
    "some layers": {"target_modules": NAMES, "layers_to_transform": [0, 1]},
    "layers of a stack": {"target_modules": NAMES, "layers_to_transform": [1], "layers_pattern": "layer"},
    "layers of stacks": {"target_modules": NAMES, "layers_to_transform": [1], "layers_pattern": ["blocks", "layer"]},
    "full names beside layers": {
        "target_modules": ["query", "bert.encoder.layer.0.attention.self.value"], "layers_to_transform": [1],
    },
    "without one": {"target_modules": NAMES, "exclude_modules": ["layer.0.attention.self.query"]},
    "without an expression": {"target_modules": NAMES, "exclude_modules": r".*\.layer\.0\..*value"},
    "an expression": {"target_modules": r".*\.layer\.1\.attention\.self\.(query|value)"},
    "an expression that looks ahead": {"target_modules": r"(?!.*layer\.0).*(?:query|output\.dense)$"},
    "a lazy expression": {"target_modules": r"bert.*?(?:attention|intermediate).*?(?:key|dense)"},
    "all linear": {"target_modules": "all-linear"},
    "ranks by expression": {"target_modules": NAMES, "rank_pattern": {r".*\.[0]\..*query": 2, r".*query": 3}},
    "alphas by expression": {
        "target_modules": NAMES, "use_rslora": True,
        "alpha_pattern": {r"^bert\.encoder\.layer\.1.*": 3.0, "value": 5.0, r"(a+)+$": 1.0},
    },
    "a place of the name": {"target_modules": ["query"], "alpha_pattern": {"attention.self.query": 2.0, "query": 7.0}},
}  # fmt: skip


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory, save_base: Callable[..., Path]) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def base(base_folder: Path) -> LoadedBase:
    return load_base(describe_base(resolve_base(str(base_folder)), "SEQ_CLS"))


def made_by_peft(base: Path, folder: Path, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What PEFT saves with random factors, and module to what it adds when it loads that again."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(2)
    config = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=6, **settings)
    made = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), config)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    made.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base), folder)
    layers = {n.removeprefix(PREFIX): m for n, m in loaded.named_modules() if isinstance(m, LoraLayer)}
    return {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}


def files(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "adapter_config.json").read_bytes(), (folder / "adapter_model.safetensors").read_bytes()


def check_same(adapter: ForeignAdapter, expected: dict[str, torch.Tensor]) -> None:
    assert adapter.factors.A.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(adapter.factors.delta(name), delta, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_it_means_what_it_means_in_peft(form, tmp_path, base_folder, base) -> None:
    expected = made_by_peft(base_folder, tmp_path / "out", FORMS[form])
    config, weights = files(tmp_path / "out")
    if form == "all linear":  # PEFT saves the names; others save the word
        config = json.dumps(json.loads(config) | {"target_modules": "all-linear"}).encode()
    adapter = read_foreign(parse(config), weights)
    check_same(adapter, expected)
    assert check_fits(adapter, base, "SEQ_CLS") is None


RAW = {
    "compiled": (lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod."), ("_orig_mod.",)),
    "compiled from without": (lambda name: f"_orig_mod.{name}", ("_orig_mod.",)),
    "compiled by layer": (lambda name: name.replace("attention.", "attention._orig_mod."), ("_orig_mod.",)),
    "raw state": (lambda name: name.replace(".weight", ".default.weight") if "lora" in name else name, (".default",)),
    "raw state of another name": (
        lambda name: name.replace(".weight", ".my-own.weight") if "lora" in name else name, (".my-own",)
    ),
    "raw head": (
        lambda name: name.replace("classifier.", "classifier.modules_to_save.default."), ("modules_to_save.default",)
    ),
    "head of old versions": (
        lambda name: name.replace("classifier.", "classifier.modules_to_save."), ("modules_to_save",)
    ),
    "parallel": (lambda name: f"module.{name}", ("module.",)),
    "parallel beneath": (lambda name: name.replace(PREFIX, f"{PREFIX}module."), ("module.",)),
    "sharded": (lambda name: name.replace("self.", "self._fsdp_wrapped_module."), ("_fsdp_wrapped_module.",)),
    "checkpointed": (
        lambda name: name.replace("layer.0.", "layer.0._checkpoint_wrapped_module."), ("_checkpoint_wrapped_module.",)
    ),
    "twice": (lambda name: f"{PREFIX}{name}", (f"a second {PREFIX}",)),
    "without": (lambda name: name.removeprefix(PREFIX), (f"no {PREFIX}",)),
    "all at once": (
        lambda name: f"module.{name.replace(PREFIX, f'{PREFIX}_orig_mod.')}".replace("A.weight", "A.x.weight"),
        ("_orig_mod.", "module.", ".x"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", RAW)
def test_what_wrappers_leave_in_names_is_taken_out_and_told(how, tmp_path, base_folder, base) -> None:
    rename, taken = RAW[how]
    expected = made_by_peft(base_folder, tmp_path / "out", {"target_modules": NAMES})
    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    adapter = read_foreign(parse(files(tmp_path / "out")[0]), save(renamed))
    check_same(adapter, expected)
    assert adapter.head.keys() == {"classifier.weight", "classifier.bias"}
    assert set(adapter.taken) == set(taken)
    assert check_fits(adapter, base, "SEQ_CLS") is None


def test_a_head_that_was_replaced_is_passed_over_and_told() -> None:
    head = f"{PREFIX}classifier"
    tensors = good_tensors() | {f"{head}.original_module.weight": torch.zeros(2, 32)}
    adapter = read(good_config(), tensors)
    assert adapter.taken == ("original_module.",)
    torch.testing.assert_close(adapter.head["classifier.weight"], tensors[f"{head}.weight"])


@pytest.mark.parametrize("order", [1, -1])
def test_the_bias_of_a_head_may_stand_under_both_names(order: int) -> None:
    """As PEFT's ``bias="all"`` saves it; which of the two comes first in the file is a matter of hashes."""
    name, saved = f"{PREFIX}classifier.bias", f"{PREFIX}classifier.modules_to_save.bias"
    same = {name: torch.ones(2), saved: torch.ones(2)}
    found, taken = plain_keys(dict(list(same.items())[::order]))
    assert found.keys() == {name}
    assert taken == ("modules_to_save",)
    other = {name: torch.ones(2), saved: torch.zeros(2)}
    with pytest.raises(DataError, match=f"two tensors are named '{name}'"):
        plain_keys(dict(list(other.items())[::order]))


def test_the_head_of_a_distilbert_is_all_that_peft_saves_by_default(tmp_path, make_base) -> None:
    """PEFT saves every module whose name ends in ``classifier``, the ``pre_classifier`` too."""
    folder = make_base("distilbert")
    expected = made_by_peft(folder, tmp_path / "out", {"target_modules": ["q_lin", "v_lin"]})
    config, weights = files(tmp_path / "out")
    assert json.loads(config)["modules_to_save"] == ["classifier", "score"]
    adapter = read_foreign(parse(config), weights)
    check_same(adapter, expected)
    assert {name.split(".")[0] for name in adapter.head} == {"pre_classifier", "classifier"}
    base = load_base(describe_base(resolve_base(str(folder)), "SEQ_CLS"))
    assert check_fits(adapter, base, "SEQ_CLS") is None


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (lambda found: found | {f"_orig_mod.{QUERY}.lora_A.weight": torch.ones(2, 32)}, "two tensors are named"),
        (
            lambda found: {
                name.replace(".weight", f".{'ab'['layer.0' in name]}.weight"): tensor for name, tensor in found.items()
            },
            "tensors of 2 adapters: a, b",
        ),
        (lambda found: found | {f"{QUERY}._orig_mod.base_layer.weight": torch.ones(32, 32)}, "neither a LoRA factor"),
        (lambda found: found | {"bert.pooler.dense.weight": torch.ones(32, 32)}, "neither a LoRA factor"),
    ],
)
def test_names_that_cannot_be_freed_are_refused(tensors, reason) -> None:
    with pytest.raises(DataError, match=reason) as refused:
        read(tensors=tensors(good_tensors()))
    assert refused.value.unchanged == "nothing was changed"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"layers_to_transform": [0]}, "layer.1.attention.self.query' is present, but is not part"),
        ({"layers_to_transform": [0, 1, 2], "layers_pattern": "blocks"}, "is present, but is not part"),
        ({"exclude_modules": ["layer.1.attention.self.query"]}, "is present, but is not part"),
        ({"target_modules": "([a-z.0-9_]+)+!"}, "is present, but is not part"),
        ({"target_modules": ".*query|.*key"}, r"self\.key' is missing \(2 of 4\)"),
        ({"target_modules": "all-linear"}, "is missing"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(fields, reason, base) -> None:
    with pytest.raises(DataError, match=reason):
        check_fits(read(good_config() | fields), base, "SEQ_CLS")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"target_modules": r".*(?<=self\.)query"}, "target_modules"),
        ({"exclude_modules": r"(a)\1"}, "exclude_modules"),
        ({"layers_to_transform": [0], "layers_pattern": "layers?"}, "layers_pattern"),
        ({"target_modules": "a" * 5000}, "target_modules"),
    ],
)
def test_where_the_config_cannot_be_asked_the_tensors_decide(fields, named, base) -> None:
    assert named in str(check_fits(read(good_config() | fields), base, "SEQ_CLS"))


def test_a_rank_that_cannot_be_asked_is_the_tensors() -> None:
    adapter = read(good_config() | {"r": 8, "rank_pattern": {r"(?<=x)query": 2}})
    assert set(adapter.rank_pattern.values()) == {2}
    assert set(adapter.factors.scaling.values()) == {8 / 2}


def test_weights_named_as_parameters_are_their_modules() -> None:
    targets = read_targets({"target_modules": ["query"], "target_parameters": ["mlp.gate_proj.weight"]})
    linear = ["a.query", "a.mlp.gate_proj", "b.gate_proj", "a.mlp.up_proj"]
    assert targets.among(linear) == {"a.query", "a.mlp.gate_proj"}
    with pytest.raises(DataError, match="target_parameters"):
        read_targets({"target_parameters": ["gate_up_proj"]})


def test_parameters_of_experts_are_kept_apart() -> None:
    targets = read_targets({"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]})
    assert targets.experts == {"mlp.experts.gate_up_proj"}
    assert targets.has_experts("model.layers.0.mlp.experts.gate_up_proj")
    assert not targets.has_experts("model.layers.0.mlp.experts.down_proj")
    for inner in ("", ".base_layer"):
        assert targets.wraps(f"model.layers.0.mlp.experts{inner}")
    assert not targets.wraps("model.layers.0.self_attn.q_proj")
    assert targets.among(["a.q_proj", "a.mlp.experts.gate_up_proj.0"]) == {"a.q_proj"}


def test_a_pattern_has_a_bound() -> None:
    with pytest.raises(Unreadable, match="more than 64"):
        Pattern({f"q+{i}": 1.0 for i in range(65)})
    assert Pattern({f"q{i}": float(i) for i in range(1000)}).value("a.q999", 0.0) == 999
