"""Quantised linear layers: what is kept, what they compute, and which layers of a model become one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.errors import ConfigError, IncompatibleError
from lorabank.core.shelves import QUANTISERS
from lorabank.models.bases.loading import describe_base, load_base
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.bases.quantised.base import Quantiser
from lorabank.models.bases.quantised.linear import QuantisedLinear
from lorabank.models.bases.quantised.recipe import in_full, is_ours, read_recipe
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.bases.sites import set_matrix, site_of, sites_in
from lorabank.models.mixing.mixture import Mixture
from lorabank.training.layers.layer import LoraLinear, fold

ALL = list(QUANTISERS.table)


def choose_quantiser(text: str) -> Quantiser:
    return read_recipe(text).quantiser


def weight_bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kept_and_back(text: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    quantiser = choose_quantiser(text)
    kept = quantiser.quantise(weight)
    return kept, quantiser.dequantise(kept, (len(weight), weight.shape[1]), torch.float32)


def layer_of(text: str, weight: torch.Tensor, bias: torch.Tensor | None = None) -> QuantisedLinear:
    quantiser = choose_quantiser(text)
    return QuantisedLinear(quantiser, quantiser.quantise(weight), (48, 64), torch.float32, bias)


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("gained", [False, True])
def test_a_layer_computes_what_its_matrix_computes(text: str, gained: bool) -> None:
    """With what stands beside it, forward and backward, against autograd in float64."""
    weight, bias = random(48, 64), random(48, seed=1)
    layer, (_, matrix) = layer_of(text, weight, bias), kept_and_back(text, weight)
    dense = matrix.double()
    for seed in (2, 3):
        A, B = random(4, 64, seed=seed), random(48, 4, seed=seed + 10)
        g = 1 + 0.1 * random(48, seed=seed + 20) if gained else None
        layer.add_beside(A, B, g)
        dense = (dense if g is None else g.double()[:, None] * dense) + B.double() @ A.double()
    x, target = random(2, 5, 64, seed=9), random(2, 5, 48, seed=10)
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    out = layer(ours)
    expected = theirs @ dense.T + bias.double()
    (out * target).sum().backward()
    (expected * target.double()).sum().backward()
    assert torch.allclose(out.double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.allclose(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-4)
    assert torch.allclose(layer.weight.double(), dense, atol=1e-5)


@pytest.mark.parametrize("before", [0, 3])
def test_what_was_added_last_can_be_taken_away(before: int) -> None:
    layer, x = layer_of("int8", random(48, 64)), random(5, 64, seed=20)
    if before:
        layer.add_beside(random(before, 64, seed=1), random(48, before, seed=2), 1 + 0.1 * random(48, seed=3))
    found, weight = layer(x), layer.weight
    assert layer.rank_beside == before
    for seed in (4, 5):
        layer.add_beside(random(2, 64, seed=seed), random(48, 2, seed=seed + 10))
    assert layer.rank_beside == before + 4
    assert not torch.equal(layer.weight, weight)
    layer.cut_beside(before)
    assert layer.rank_beside == before
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer(x), found)


@pytest.mark.parametrize("text", ALL)
def test_training_keeps_no_float_copy_of_the_matrix(text: str) -> None:
    layer = LoraLinear(layer_of(text, random(48, 64)), (random(2, 64), random(48, 2), None), 1.0, 0.0)
    layer.lora_A.requires_grad_()
    saved: list[torch.Size] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(random(5, 64).requires_grad_()).sum().backward()
    assert saved
    assert torch.Size([48, 64]) not in saved


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("gained", [False, True])
def test_a_trainable_layer_on_it_has_the_gradients_of_the_dense_one(text: str, gained: bool) -> None:
    weight = random(48, 64)
    quantised, (_, matrix) = layer_of(text, weight), kept_and_back(text, weight)
    plain = nn.Linear(64, 48, bias=False)
    plain.weight.data = matrix.clone()
    A, B, gain = random(2, 64, seed=1), random(48, 2, seed=2), (random(48, seed=3) if gained else None)
    found = []
    for base in (quantised, plain):
        layer = LoraLinear(base, (A, B, gain), 0.5, 0.0)
        leaves = [leaf.requires_grad_() for leaf in layer.leaves()]
        x = random(5, 64, seed=4).requires_grad_()
        out = layer(x)
        out.square().sum().backward()
        found.append([out, x.grad, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-3)


class Holder(nn.Module):
    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


def adapters(gained: bool) -> AdapterStack:
    return AdapterStack.build({
        f"a{k}": LoraFactors(
            {"proj": random(2, 64, seed=k)},
            {"proj": random(48, 2, seed=k + 5)},
            {"proj": 0.5},
            {"proj": 1 + 0.1 * random(48, seed=k + 8)} if gained else {},
        )
        for k in range(3)
    })  # fmt: skip


@pytest.mark.parametrize("gained", [False, True])
def test_the_past_stands_beside_it(gained: bool) -> None:
    weight, x = random(48, 64), random(5, 64, seed=20)
    quantised, (_, matrix) = Holder(layer_of("int8", weight)), kept_and_back("int8", weight)
    before = quantised.proj.kept_codes
    stack = adapters(gained)
    total = matrix + stack.modules["proj"].delta(torch.ones(3), matrix)
    fold(quantised, stack.select(["a0", "a1"]), stack.select(["a2"]))
    assert torch.allclose(quantised(x), x @ total.T, atol=1e-3)
    assert quantised.proj.kept_codes is before


@pytest.mark.parametrize("gained", [False, True])
def test_a_mixture_on_it_answers_in_every_state(gained: bool) -> None:
    weight, x = random(48, 64), random(5, 64, seed=20)
    model, (_, matrix) = Holder(layer_of("int8", weight)), kept_and_back("int8", weight)
    bare, stack, weights = model(x), adapters(gained), torch.tensor([0.5, 0.0, -0.3])
    mixture = Mixture(model, stack)
    moved = x @ (matrix + stack.modules["proj"].delta(weights, matrix)).T

    def in_turn() -> dict[str, Callable[[], None]]:
        return {
            "weights": lambda: mixture.merge(weights),
            "in parts": lambda: mixture.merge_sum([weights * torch.tensor(m) for m in ([1, 1, 0], [0, 0, 1])]),
            "one adapter": lambda: mixture.merge_adapter(stack.combine(weights)),
            "by sample": lambda: mixture.per_sample(weights.expand(5, 3)),
        }

    for state, enter in in_turn().items():
        enter()
        assert torch.allclose(model(x), moved, atol=1e-3), state
        mixture.off()
        assert torch.equal(model(x), bare), state


def test_nothing_is_merged_into_it() -> None:
    model = Holder(layer_of("int8", random(48, 64)))
    with pytest.raises(IncompatibleError, match="proj is quantised"):
        site_of(model, "proj").merged(random(48, 64))
    with pytest.raises(IncompatibleError, match="quantised"):
        set_matrix(model.proj, random(48, 64))


# ------------------------------------------------------------------------------------------------------ whole models


def record(folder: Path, quantise: str | None = "int8", task_type: str = "auto") -> Any:
    return describe_base(resolve_base(str(folder)), task_type, quantise)


def test_the_linear_layers_of_a_body_are_quantised(kind: str, make_base: Callable[..., Path]) -> None:
    auto = transformers.AutoModelForCausalLM if kind in ("llama", "gpt_neox") else transformers.AutoModel
    folder = make_base(kind, auto)
    base = load_base(record(folder, task_type="SEQ_CLS"))
    plain = load_base(record(folder, None, task_type="SEQ_CLS"))
    changed = {name for name, module in base.model.named_modules() if isinstance(module, QuantisedLinear)}
    heads = tuple(f"{head}." for head in base.head_modules)
    linear = {
        name for name, module in plain.model.named_modules()
        if isinstance(module, nn.Linear) and not f"{name}.".startswith(heads)
    }  # fmt: skip
    fused = {site.name for site, parts in sites_in(plain.model) if parts}
    assert changed == linear - fused
    assert changed
    for name in changed:
        before, after = plain.model.get_submodule(name).weight, base.model.get_submodule(name).weight
        assert 0 < float((before - after).norm() / before.norm()) < 0.02
        before.data = after
    ids = torch.arange(4, 16).view(2, 6)
    assert torch.allclose(base.model(input_ids=ids).logits, plain.model(input_ids=ids).logits, atol=1e-4)


def test_every_dtype_has_the_same_codes(make_language_model: Callable[..., Path]) -> None:
    found = [load_base(record(make_language_model()), dtype=dtype).model for dtype in ("float32", "bfloat16")]
    layers = [{n: m for n, m in model.named_modules() if isinstance(m, QuantisedLinear)} for model in found]
    for name, layer in layers[0].items():
        assert torch.equal(layer.kept_codes, layers[1][name].kept_codes)
        assert torch.equal(layer.kept_steps, layers[1][name].kept_steps)
    assert {p.dtype for p in found[1].parameters() if p.is_floating_point()} == {torch.bfloat16, torch.float32}
    assert found[1].get_input_embeddings().weight.dtype == torch.bfloat16
    assert found[1](input_ids=torch.arange(4, 10)[None]).logits.dtype == torch.bfloat16


def test_twins_share_what_is_kept(make_language_model: Callable[..., Path]) -> None:
    opened = OpenBase(record(make_language_model()))
    one, other = opened.load().model, opened.load().model
    name = next(n for n, m in one.named_modules() if isinstance(m, QuantisedLinear))
    layers = [model.get_submodule(name) for model in (one, other)]
    assert layers[0].kept_codes is layers[1].kept_codes
    layers[0].add_beside(random(1, layers[0].in_features), random(layers[0].out_features, 1))
    assert layers[1].beside == (None, None, None)


def test_nf4_takes_a_quarter_of_bfloat16(make_language_model: Callable[..., Path]) -> None:
    """Of the layers that are quantised; 4.127 bits a weight, and the 256 levels of the second quantisation."""
    quantiser, weight = choose_quantiser("nf4"), random(512, 1024)
    layer = QuantisedLinear(quantiser, quantiser.quantise(weight), (512, 1024), torch.bfloat16)
    assert weight_bytes(layer) < 0.26 * 2 * weight.numel() + 1024


# -------------------------------------------------------------------------------------------------------- as a record


def test_a_record_holds_every_setting() -> None:
    assert in_full("int8") == "int8:"
    assert in_full("nf4:block_size=128") == "nf4:block_size=128,double_quant=true"
    assert choose_quantiser(in_full("nf4:double_quant=no")) == choose_quantiser("nf4:double_quant=false")
    assert [is_ours(text) for text in ("int8:", "nf4:block_size=64", "gptq", None)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nf3", "there is no quantiser 'nf3'. Did you mean 'nf4'?"),
        ("nf4:block_size=63", "block_size = '63'"),
        ("nf4:blocks=64", "there is no setting 'blocks'"),
        ("nf4:bits=3", "there is no setting 'bits', which is one of quantiser hqq"),
        ("int8:block_size=64", "there is no setting 'block_size'"),
        ("nf4+lqer:ranks=4", "there is no setting 'ranks'. Did you mean 'rank'?"),
        ("nf4+lqer+loftq", "expected QUANTISER or QUANTISER+CORRECTION"),
    ],
)
def test_a_text_that_fits_no_quantiser_is_refused(text: str, problem: str) -> None:
    """What was typed is named, with the option that there is."""
    with pytest.raises(ConfigError) as caught:
        choose_quantiser(text)
    assert caught.value.message.startswith(f"--quantise {text}: ")
    assert problem in caught.value.message
    assert "--set" not in caught.value.message


def test_a_setting_that_a_quantiser_lacks_is_answered_with_those_that_it_has() -> None:
    for text, having in (
        ("nf4:bits=3", "nf4 has the settings block_size, double_quant; its defaults, written out, are nf4:block_size"),
        ("int8:bits=4", "int8 has no settings"),
    ):
        with pytest.raises(ConfigError) as caught:
            choose_quantiser(text)
        assert having in str(caught.value.hint)
        assert [tuple(command) for command in caught.value.commands] == [("methods", text.partition(":")[0])]


def test_the_quantiser_is_part_of_the_fingerprint(make_language_model: Callable[..., Path]) -> None:
    folder = make_language_model()
    records = [record(folder, text) for text in (None, "int8", "int8:")]
    assert records[1] == records[2]
    assert records[0].fingerprint != records[1].fingerprint
    assert (records[0].quantisation, records[1].quantisation) == (None, "int8:")
    assert records[0]._replace(fingerprint="", quantisation=None) == records[1]._replace(
        fingerprint="", quantisation=None
    )


def test_a_checkpoint_is_not_quantised_twice(make_language_model: Callable[..., Path]) -> None:
    import json

    folder = make_language_model()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    assert record(folder, None).quantisation == "gptq"
    with pytest.raises(IncompatibleError, match=r"is quantised already \(gptq\)"):
        record(folder, "int8")


def test_a_layer_is_copied_as_others_are() -> None:
    layer = layer_of("int8", random(48, 64))
    twin, x = copy.deepcopy(layer), random(3, 64)
    assert torch.equal(twin(x), layer(x))
    assert "int8" in repr(layer).lower()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("text", ALL)
def test_a_gpu_has_the_same_base(text: str) -> None:
    weight, x = random(48, 64), random(5, 64, seed=1)
    layer = layer_of(text, weight)
    layer.add_beside(random(4, 64, seed=2), random(48, 4, seed=3))
    on_cpu, before = layer(x), layer.weight.clone()
    layer.cuda()
    assert torch.allclose(layer.weight.cpu(), before, atol=1e-6)
    assert torch.allclose(layer(x.cuda()).cpu(), on_cpu, atol=1e-3)
