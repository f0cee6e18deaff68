"""Folders of strangers: what PEFT writes is read as PEFT means it, what is not plain LoRA with a head is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save

from lorabank.core.errors import DataError
from lorabank.exchange.config_fields import parse
from lorabank.exchange.fit_check import check_fits
from lorabank.exchange.untrusted_adapter import read_foreign
from lorabank.models.bases.loading import describe_base, load_base
from lorabank.models.bases.resolving import resolve_base

ATTENTION = "bert.encoder.layer.0.attention.self"
PREFIX = "base_model.model."


def good_config() -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "someone/base",
        "r": 2,
        "lora_alpha": 8,
        "target_modules": ["query"],
        "modules_to_save": ["classifier", "score"],
    }


def good_tensors() -> dict[str, torch.Tensor]:
    """LoRA on the query projections of a two-layer BERT of width 32, and a head of two labels."""
    torch.manual_seed(1)
    found = {}
    for layer in range(2):
        name = f"{PREFIX}bert.encoder.layer.{layer}.attention.self.query"
        found[f"{name}.lora_A.weight"] = torch.randn(2, 32)
        found[f"{name}.lora_B.weight"] = torch.randn(32, 2)
    return found | {f"{PREFIX}classifier.weight": torch.randn(2, 32), f"{PREFIX}classifier.bias": torch.randn(2)}


def encode(config: Any) -> bytes:
    return config if isinstance(config, bytes) else json.dumps(config).encode()


def read(config: Any = None, tensors: dict[str, torch.Tensor] | None = None) -> Any:
    return read_foreign(
        parse(encode(config or good_config())), save(tensors if tensors is not None else good_tensors())
    )


def test_a_plain_adapter_is_read() -> None:
    adapter = read()
    tensors = good_tensors()
    assert adapter.factors.scaling == {f"bert.encoder.layer.{i}.attention.self.query": 4.0 for i in range(2)}
    assert torch.equal(adapter.factors.A[f"{ATTENTION}.query"], tensors[f"{PREFIX}{ATTENTION}.query.lora_A.weight"])
    assert torch.equal(adapter.head["classifier.bias"], tensors[f"{PREFIX}classifier.bias"])
    assert (adapter.r, adapter.lora_alpha, adapter.use_rslora) == (2, 8.0, False)
    assert adapter.targets.modules == {"query"}
    assert (adapter.rank_pattern, adapter.alpha_pattern) == ({}, {})


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 6},
        {"r": 4, "lora_alpha": 6, "use_rslora": True, "init_lora_weights": "gaussian"},
        {"r": 4, "lora_alpha": 6, "rank_pattern": {"1.attention.self.query": 3}, "alpha_pattern": {"value": 1.5}},
        {"r": 4, "lora_alpha": 6, "use_rslora": True, "rank_pattern": {"query": 2}, "lora_dropout": 0.25},
    ],
)
def test_what_peft_saves_means_what_it_means_in_peft(settings, tmp_path, make_base) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import Linear
    from transformers import AutoModelForSequenceClassification

    base = make_base("bert")
    model = AutoModelForSequenceClassification.from_pretrained(base)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], **settings)
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "out")
    files = [(tmp_path / "out" / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")]
    adapter = read_foreign(parse(files[0]), files[1])
    layers = {n.removeprefix(PREFIX): layer for n, layer in model.named_modules() if isinstance(layer, Linear)}
    assert adapter.factors.A.keys() == layers.keys()
    for name, layer in layers.items():
        torch.testing.assert_close(adapter.factors.delta(name), layer.get_delta_weight("default").detach())
    check_fits(adapter, load_base(describe_base(resolve_base(str(base)))), "SEQ_CLS")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", None),
        ("peft_type", "IA3"),
        ("r", 10**6),
        ("r", 0),
        ("r", -1),
        ("r", 2.0),
        ("r", "2"),
        ("r", True),
        ("r", None),
        ("r", 3),
        ("lora_alpha", None),
        ("lora_alpha", 0),
        ("lora_alpha", -8),
        ("lora_alpha", "8"),
        ("lora_alpha", 10**400),
        ("lora_dropout", 2),
        ("use_rslora", "yes"),
        ("target_modules", ["(query)+"]),
        ("target_modules", []),
        ("target_modules", None),
        ("target_modules", [1]),
        ("modules_to_save", "classifier"),
        ("modules_to_save", ["cla.*"]),
        ("rank_pattern", {".*query": 4}),
        ("rank_pattern", {"query": 10**6}),
        ("rank_pattern", {"query": 1}),
        ("alpha_pattern", {"(?<=layer)q": 2}),
        ("layers_to_transform", "0"),
        ("layers_to_transform", [-1]),
        ("layers_pattern", 3),
        ("exclude_modules", ["a b"]),
        ("alpha_pattern", {"query": 0}),
        ("alpha_pattern", ["query"]),
        ("bias", "some"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("use_dora", True),
        ("lora_bias", True),
        ("layer_replication", [[0, 100000]]),
        ("loftq_config", {"loftq_bits": 4}),
        ("corda_config", {"cache_file": "cache.pt"}),
        ("megatron_config", {"a": 1}),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["weight"]),
        ("trust_remote_code", True),
        ("surprise", "boo"),
        ("task_type", 7),
        ("base_model_name_or_path", ["a"]),
    ],
)
def test_a_config_that_asks_for_more_is_refused_by_the_name_of_its_field(field, value) -> None:
    with pytest.raises(DataError) as refused:
        read(good_config() | {field: value})
    named = "rank" if field in ("r", "rank_pattern") and value in (3, {"query": 1}, {".*query": 4}) else repr(field)
    assert named in refused.value.message
    assert "\n" not in refused.value.message
    assert refused.value.unchanged == "nothing was changed"


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_mapping": {"base_model_class": "X", "parent_library": "os"}, "megatron_core": "os"},
        {"peft_version": "0.21.2", "inference_mode": True, "revision": "main", "qalora_group_size": 16},
        {"use_dora": False, "loftq_config": {}, "layers_to_transform": None, "a_feature_of_tomorrow": None},
        {"base_model_name_or_path": "/etc/passwd"},
        {"modules_to_save": None},
    ],
)
def test_what_means_nothing_here_is_passed_over(fields) -> None:
    adapter = read(good_config() | fields)
    assert adapter.factors.scaling[f"{ATTENTION}.query"] == 4.0


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"peft_type": "LORA", "peft_type": "LORA"}',
        b'{"peft_type": "LORA", "lora_alpha": NaN}',
        b'{"r": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "list", "not-utf8", "deep", "twice", "nan", "digits"],
)
def test_a_config_that_is_no_json_object_is_refused(config) -> None:
    with pytest.raises(DataError, match=r"adapter_config\.json: not"):
        read_foreign(parse(config), save(good_tensors()))


QUERY = f"{PREFIX}{ATTENTION}.query"


def without(*names: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in good_tensors().items() if name not in names}


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (lambda: {}, "holds no LoRA factors"),
        (lambda: good_tensors() | {f"{QUERY}.weight": torch.ones(32, 32)}, "neither a LoRA factor"),
        (lambda: good_tensors() | {f"{QUERY}.base_layer.weight": torch.ones(32, 32)}, "neither a LoRA factor"),
        (lambda: good_tensors() | {"bert.pooler.dense.bias": torch.ones(32)}, "neither a LoRA factor"),
        (
            lambda: good_tensors() | {f"{QUERY}.lora_embedding_A": torch.ones(2, 32)},
            "is a second factor of its module",
        ),
        (lambda: good_tensors() | {f"{PREFIX}bert.pooler.dense.bias": torch.ones(32)}, "neither a LoRA factor"),
        (lambda: without(f"{QUERY}.lora_A.weight"), "only one of lora_A and lora_B"),
        (lambda: without(f"{QUERY}.lora_B.weight"), "only one of lora_A and lora_B"),
        (lambda: good_tensors() | {f"{QUERY}.lora_A.weight": torch.ones(3, 32)}, r"shapes \[3, 32\] and \[32, 2\]"),
        (lambda: good_tensors() | {f"{QUERY}.lora_A.weight": torch.ones(64)}, "shapes"),
        (
            lambda: (
                good_tensors()
                | {f"{QUERY}.lora_A.weight": torch.ones(4, 32), f"{QUERY}.lora_B.weight": torch.ones(32, 4)}
            ),
            r"has rank 4, adapter_config\.json says 2",
        ),
        (
            lambda: (
                good_tensors()
                | {f"{QUERY}.lora_A.weight": torch.ones(0, 32), f"{QUERY}.lora_B.weight": torch.ones(32, 0)}
            ),
            "with r from 1",
        ),
        (lambda: good_tensors() | {f"{QUERY}.lora_A.weight": torch.ones(2, 32, dtype=torch.int8)}, "int8"),
        (lambda: good_tensors() | {f"{QUERY}.lora_A.weight": torch.ones(2, 32, dtype=torch.float64)}, "float64"),
        (lambda: {n: t * ("lora_B" not in n) for n, t in good_tensors().items()}, "every delta weight is zero"),
        (lambda: {n: t * ("lora_A" not in n) for n, t in good_tensors().items()}, "every delta weight is zero"),
    ],
)
def test_tensors_that_are_not_exactly_an_adapter_are_refused(
    tensors: Callable[[], dict[str, torch.Tensor]], reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as refused:
        read(tensors=tensors())
    assert "\n" not in refused.value.message


def test_half_precision_is_read_exactly() -> None:
    exact = {name: tensor.to(torch.bfloat16) for name, tensor in good_tensors().items()}
    adapter = read(tensors=exact)
    assert adapter.factors.A[f"{ATTENTION}.query"].dtype == torch.float32
    assert torch.equal(adapter.factors.A[f"{ATTENTION}.query"].bfloat16(), exact[f"{QUERY}.lora_A.weight"])


@pytest.mark.parametrize("on_experts", [True, False])
def test_the_factors_of_many_experts_have_more_rows_than_a_rank_may_have(on_experts: bool) -> None:
    """128 experts of rank 16 are 2048 rows, which as a rank would be too high."""
    rows = 128 * 16
    module = "model.layers.0.mlp.experts" if on_experts else "model.layers.0.mlp.gate_proj"
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 16, "lora_alpha": 16}
    targets = {"target_parameters": ["mlp.experts.down_proj"]} if on_experts else {"target_modules": ["gate_proj"]}
    factors = {"lora_A": torch.randn(rows, 4), "lora_B": torch.randn(4, rows)}
    tensors = {f"{PREFIX}{module}.{name}.weight": tensor for name, tensor in factors.items()}
    if on_experts:
        (a, b) = read(config | targets, tensors).stacked[module]
        assert torch.equal(a, factors["lora_A"])
        assert torch.equal(b, factors["lora_B"])
    else:
        with pytest.raises(DataError, match="with r from 1 to 1024"):
            read(config | targets, tensors)
