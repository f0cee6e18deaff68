"""Adapters of strangers beside a base: what does not fit it, or does nothing on it, is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import DataError, IncompatibleError
from lorabank.core.shelves import TASK_TYPES
from lorabank.exchange.fit_check import check_effect, check_fits, largest_update
from lorabank.models.bases.loading import LoadedBase, describe_base, load_base
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.tasks.classification import Classification
from lorabank.models.tasks.heads import load_head
from tests.unit.exchange.test_untrusted_adapter import ATTENTION, PREFIX, QUERY, good_config, good_tensors, read


@pytest.fixture
def base(make_base: Callable[..., Path]) -> LoadedBase:
    return load_base(describe_base(resolve_base(str(make_base("bert")))))


def test_an_adapter_that_fits_is_let_in(base) -> None:
    check_fits(read(), base, "SEQ_CLS")


@pytest.mark.parametrize(
    ("config", "tensors", "error", "reason"),
    [
        ({"task_type": "CAUSAL_LM"}, {}, IncompatibleError, "trained for 'CAUSAL_LM'"),
        (
            {"modules_to_save": ["classifier", "bert.pooler"]},
            {f"{PREFIX}bert.pooler.dense.bias": torch.ones(32)},
            DataError,
            "head tensor 'bert.pooler.dense.bias' is present",
        ),
        ({}, {f"{PREFIX}classifier.bias": None}, DataError, r"head tensor 'classifier.bias' is missing \(1 of 2\)"),
        ({}, {f"{QUERY}.lora_A.weight": None, f"{QUERY}.lora_B.weight": None}, DataError, r"is missing \(1 of 2\)"),
        (
            {"target_modules": ["query", "key"]},
            {f"{QUERY.replace('query', 'key')}.lora_A.weight": torch.ones(2, 32)}
            | {f"{QUERY.replace('query', 'key')}.lora_B.weight": torch.ones(32, 2)},
            DataError,
            r"layer.1.attention.self.key' is missing \(1 of 4\)",
        ),
        (
            {},
            {f"{QUERY.replace('query', 'key')}.lora_A.weight": torch.ones(2, 32)}
            | {f"{QUERY.replace('query', 'key')}.lora_B.weight": torch.ones(32, 2)},
            DataError,
            "self.key' is present, but is not part",
        ),
        (
            {},
            {f"{QUERY.replace('0', '5')}.lora_A.weight": torch.ones(2, 32)}
            | {f"{QUERY.replace('0', '5')}.lora_B.weight": torch.ones(32, 2)},
            IncompatibleError,
            "layer.5.attention.self.query', and the base has no module",
        ),
        (
            {},
            {f"{QUERY}.lora_A.weight": torch.ones(2, 48)},
            IncompatibleError,
            r"shape \[32, 48\], the base's weight \[32, 32\]",
        ),
        (
            {},
            {f"{PREFIX}classifier.lora_A.weight": torch.ones(2, 32)}
            | {f"{PREFIX}classifier.lora_B.weight": torch.ones(2, 2)},
            IncompatibleError,
            "adapts 'classifier'",
        ),
    ],
)
def test_an_adapter_of_another_model_is_refused(base, config, tensors, error, reason) -> None:
    changed = {name: tensor for name, tensor in (good_tensors() | tensors).items() if tensor is not None}
    adapter = read(good_config() | config, changed)
    with pytest.raises(error, match=reason):
        check_fits(adapter, base, "SEQ_CLS")


def test_the_largest_update_is_a_ratio_of_norms(base) -> None:
    adapter = read()
    ratios = [
        float(
            torch.linalg.matrix_norm(adapter.factors.delta(name)) / base.model.get_parameter(f"{name}.weight").norm()
        )
        for name in adapter.factors.A
    ]
    assert largest_update(adapter.factors, base.model) == pytest.approx(max(ratios), rel=1e-5)
    with torch.no_grad():
        for name in adapter.factors.A:
            base.model.get_parameter(f"{name}.weight").zero_()
    assert largest_update(adapter.factors, base.model) == 0  # as biases often are: nothing to compare with


def test_an_adapter_must_change_the_answers(base) -> None:
    adapter = read()
    head = load_head(base.model, base.head_modules, 2, adapter.head)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items() if "classifier" not in name}
    rows = (
        Classification()
        .encode(base.tokenizer, ["a b", "c"], ["no", "yes"], labels=["no", "yes"], template=None, max_length=8)
        .rows
    )
    check_effect(base, "SEQ_CLS", adapter.factors, head, rows)
    after = base.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())

    # B = [b, -b] with two equal rows of A: nothing is zero, and the product is.
    a, b = torch.ones(2, 32), torch.ones(32, 2) * torch.tensor([1.0, -1.0])
    cancelled = LoraFactors({f"{ATTENTION}.query": a}, {f"{ATTENTION}.query": b}, {f"{ATTENTION}.query": 1.0})
    with pytest.raises(DataError, match="changes no logit"):
        check_effect(base, "SEQ_CLS", cancelled, head, rows)
    huge = LoraFactors({f"{ATTENTION}.value": a}, {f"{ATTENTION}.value": b.abs() * 3e38}, {f"{ATTENTION}.value": 1.0})
    with pytest.raises(DataError, match="not finite"):
        check_effect(base, "SEQ_CLS", huge, head, rows)


# ------------------------------------------------------------------------------------------------ language models

LANGUAGE = {
    "llama": ("CAUSAL_LM", "model.layers.{}.self_attn.q_proj"),
    "t5": ("SEQ_2_SEQ_LM", "decoder.block.{}.layer.1.EncDecAttention.q"),
}


@pytest.fixture(params=sorted(LANGUAGE))
def language(request: pytest.FixtureRequest, make_language_model: Callable[..., Path]) -> tuple[LoadedBase, str, str]:
    """A base, its task type, and the name of a module of each layer."""
    base = load_base(describe_base(resolve_base(str(make_language_model(request.param)))))
    return (base, *LANGUAGE[request.param])


def language_adapter(task_type: str | None, module: str, **changes: Any) -> Any:
    config = good_config() | {"task_type": task_type, "modules_to_save": None}
    config["target_modules"] = [module.partition("{}.")[2]]
    tensors = {}
    torch.manual_seed(2)
    for layer in range(2):
        tensors[f"{PREFIX}{module.format(layer)}.lora_A.weight"] = torch.randn(2, 32)
        tensors[f"{PREFIX}{module.format(layer)}.lora_B.weight"] = torch.randn(32, 2)
    return read(config | changes.pop("config", {}), tensors | changes.pop("tensors", {}))


@pytest.mark.parametrize("saved", [None, []])
def test_a_language_models_adapter_is_lora_factors_alone(language, saved) -> None:
    base, task_type, module = language
    for named in (task_type, None):
        check_fits(language_adapter(named, module, config={"modules_to_save": saved}), base, task_type)


def test_whole_modules_of_a_language_model_are_refused(language) -> None:
    base, task_type, module = language
    lm_head = {f"{PREFIX}lm_head.weight": torch.ones(272, 32)}
    for tensors in ({}, lm_head):
        adapter = language_adapter(task_type, module, config={"modules_to_save": ["lm_head"]}, tensors=tensors)
        with pytest.raises(DataError, match=r"whole modules \(lm_head\)") as refused:
            check_fits(adapter, base, task_type)
        assert refused.value.hint == "train it without modules_to_save"
    with pytest.raises(DataError, match="neither a LoRA factor nor part of a declared head"):
        language_adapter(task_type, module, tensors=lm_head)


def test_the_layer_that_makes_the_logits_is_not_adapted(language) -> None:
    base, task_type, module = language
    factors = {
        f"{PREFIX}lm_head.lora_A.weight": torch.ones(2, 32),
        f"{PREFIX}lm_head.lora_B.weight": torch.ones(272, 2),
    }
    adapter = language_adapter(task_type, module, config={"target_modules": ["lm_head"]}, tensors=factors)
    with pytest.raises(IncompatibleError, match="adapts 'lm_head'"):
        check_fits(adapter, base, task_type)


@pytest.mark.parametrize("other", ["SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"])
def test_another_task_type_is_refused(language, other) -> None:
    base, task_type, module = language
    if other == task_type:
        pytest.skip("the same")
    with pytest.raises(IncompatibleError, match=f"trained for '{other}', this bank's tasks are {task_type}"):
        check_fits(language_adapter(other, module), base, task_type)


@pytest.mark.parametrize("template", ["{text} is", None])
def test_a_language_models_adapter_must_change_the_logits(language, template) -> None:
    base, task_type, module = language
    kind = TASK_TYPES.load(task_type)()
    rows = kind.encode(
        base.tokenizer, ["a b", "c"], ["no", "yes"], labels=["no", "yes"], template=template, max_length=24
    ).rows
    adapter = language_adapter(task_type, module)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    check_effect(base, task_type, adapter.factors, None, rows)
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())

    name = module.format(0)
    a, b = torch.ones(2, 32), torch.ones(32, 2) * torch.tensor([1.0, -1.0])
    cancelled = LoraFactors({name: a}, {name: b}, {name: 1.0})
    with pytest.raises(DataError, match="changes no logit"):
        check_effect(base, task_type, cancelled, None, rows)
    huge = LoraFactors({name: a}, {name: b.abs() * 3e38}, {name: 1.0})
    with pytest.raises(DataError, match="not finite"):
        check_effect(base, task_type, huge, None, rows)
    assert all(torch.equal(tensor, base.model.state_dict()[name]) for name, tensor in before.items())
