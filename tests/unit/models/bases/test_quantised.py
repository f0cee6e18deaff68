"""Quantised linear layers: what is kept, what they compute, and which layers of a model become one."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
from lorabank.models.bases.quantised.corrections.inputs import TEXT, input_magnitudes
from lorabank.models.bases.quantised.linear import QuantisedLinear
from lorabank.models.bases.quantised.recipe import in_full, is_ours, read_recipe
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.bases.sites import set_matrix, site_of, sites_in
from lorabank.models.mixing.mixture import Mixture
from lorabank.training.layers.layer import LoraLinear, fold

BNB = importlib.util.find_spec("bitsandbytes") is not None
needs_bnb = pytest.mark.skipif(not BNB, reason="needs bitsandbytes: pip install bitsandbytes")
ALL = list(QUANTISERS.table)

LEVELS = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
"""Of NF4, as appendix E of the QLoRA paper prints them."""


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


@pytest.mark.parametrize("shape", [(24, 64), (7, 33)])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_nf4_is_the_nearest_level_of_each_block(block: int, shape: tuple[int, int]) -> None:
    weight = random(*shape)
    kept, found = kept_and_back(f"nf4:block_size={block},double_quant=false", weight)
    flat = weight.double().numpy().flatten()
    blocks = np.pad(flat, (0, -len(flat) % block)).reshape(-1, block)
    magnitudes = np.abs(blocks).max(1, keepdims=True)
    nearest = np.abs(blocks[..., None] / magnitudes[..., None] - LEVELS).argmin(-1)
    expected = (LEVELS[nearest] * magnitudes).flatten()[: len(flat)].reshape(shape)
    assert np.abs(found.double().numpy() - expected).max() < 1e-6
    assert kept["codes"].numel() * kept["codes"].element_size() == -(-len(flat) // 2)


def test_double_quantisation_keeps_the_magnitudes_in_8_bits() -> None:
    weight = random(96, 512)
    kept, found = kept_and_back("nf4", weight)
    _, single = kept_and_back("nf4:double_quant=false", weight)
    magnitudes = weight.reshape(-1, 64).abs().amax(1).double()
    levels, outer = kept["levels"].double(), kept["outer"].double().repeat_interleave(256)
    left = magnitudes - magnitudes.mean()
    nearest = levels[(left[:, None] / outer[:, None] - levels).abs().argmin(1)] * outer + magnitudes.mean()
    scale = (nearest / magnitudes).repeat_interleave(64).reshape(96, 512)
    assert (found.double() - single.double() * scale).abs().max() < 1e-5
    constants = sum(t.numel() * t.element_size() for name, t in kept.items() if name not in ("codes", "levels"))
    assert constants == 96 * 512 / 64 + 4 * 96 * 512 / 64 / 256 + 4


@needs_bnb
def test_nf4_is_what_transformers_loads() -> None:
    """bitsandbytes' own layer, as ``BitsAndBytesConfig(load_in_4bit=True)`` makes it."""
    import bitsandbytes

    weight, x = random(48, 64), random(5, 64, seed=1)
    theirs = bitsandbytes.nn.Linear4bit(64, 48, bias=False, quant_type="nf4", compress_statistics=True)
    theirs.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
    theirs = theirs.to("cpu")
    kept, back = kept_and_back("nf4", weight)
    state = theirs.weight.quant_state
    assert torch.equal(theirs.weight.data.flatten(), kept["codes"])
    assert int((state.absmax.int() - kept["magnitudes"].int()).abs().max()) <= 1
    assert torch.equal(state.state2.absmax, kept["outer"])
    assert torch.equal(state.state2.code, kept["levels"])
    assert torch.allclose(bitsandbytes.functional.dequantize_4bit(theirs.weight.data, state), back, atol=0.02)
    assert torch.allclose(theirs(x), x @ back.T, atol=0.1)


def test_the_codes_of_nf4_are_those_of_bitsandbytes() -> None:
    """Its 0.50.2 gave this digest of numbers that need no generator; it need not be installed."""
    numbers = (torch.arange(96 * 512) * 7919 + 104729) % 65536
    kept, _ = kept_and_back("nf4", (numbers.float() / 32768 - 1).view(96, 512))
    digest = hashlib.sha256(kept["codes"].numpy().tobytes()).hexdigest()
    assert digest == "f26117592501dce23ee0a198ca965567f285a0c29dfbdb31ca6a6a1eedb2056f"


def test_int8_is_the_nearest_multiple_of_each_rows_step() -> None:
    weight = torch.cat([random(7, 33), torch.zeros(1, 33)])
    kept, found = kept_and_back("int8", weight)
    rows = weight.double().numpy()
    steps = np.abs(rows).max(1, keepdims=True) / 127
    codes = np.rint(rows / np.where(steps > 0, steps, 1))
    assert np.array_equal(kept["codes"].numpy(), codes)
    assert np.abs(found.double().numpy() - codes * steps).max() < 1e-6


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("group", [32, 64])
def test_hqq_is_the_fit_of_each_group(bits: int, group: int) -> None:
    """The same equations in numpy and float64, group by group in each turn."""
    weight = random(20, 48)
    kept, found = kept_and_back(f"hqq:bits={bits},group_size={group}", weight)
    w, most = weight.double().numpy().reshape(-1, group), 2**bits - 1
    s = (w.max(1, keepdims=True) - w.min(1, keepdims=True)) / most
    z, beta, errors, zeros = -w.min(1, keepdims=True) / s, 10.0, [], []
    for _ in range(20):
        q = np.clip(np.rint(w / s + z), 0, most)
        d = w - s * (q - z)
        errors.append(np.abs(d).mean())
        zeros.append(z)
        if len(errors) > 1 and errors[-1] >= errors[-2]:
            break
        e = np.sign(d) * np.maximum(np.abs(d) - np.maximum(np.abs(d), 1e-12) ** -0.3 / beta, 0)
        z = (q - (w - e) / s).mean(1, keepdims=True)
        beta *= 1.01
    z = zeros[int(np.argmin(errors))]
    expected = s * (np.clip(np.rint(w / s + z), 0, most) - z)
    error = np.abs(found.double().numpy().reshape(-1, group) - w).mean()
    assert error == pytest.approx(np.abs(expected - w).mean(), rel=0.02)
    assert error < 1.02 * errors[0]
    assert kept["codes"].numel() == weight.numel() * bits // 8


def test_hqq_keeps_a_constant_and_fills_its_last_group() -> None:
    weight = torch.cat([torch.full((3, 21), 0.25), torch.zeros(2, 21)])
    _, found = kept_and_back("hqq", weight)
    assert torch.allclose(found, weight, atol=1e-3)


def test_a_constant_group_takes_nothing_from_small_ones() -> None:
    """Steps are kept relative to the largest, which a group without a step must not be."""
    small = 1e-6 * random(4, 64)
    _, alone = kept_and_back("hqq", small)
    _, found = kept_and_back("hqq", torch.cat([small, torch.zeros(1, 64), torch.full((1, 64), 0.25)]))
    error, least = float((found[:4] - small).norm()), float((alone - small).norm())
    assert error < 1.2 * least < 0.2 * float(small.norm())
    assert torch.equal(found[4], torch.zeros(64))
    assert torch.allclose(found[5], torch.full((64,), 0.25))


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


# -------------------------------------------------------------------------------------------------------- corrections


def truncated(error: np.ndarray, r: int, scale: np.ndarray) -> np.ndarray:
    """``U_r Sigma_r V_r^T S^-1`` of ``error S``, by numpy's singular values in float64."""
    U, S, V = np.linalg.svd(error * scale, full_matrices=False)
    return (U[:, :r] * S[:r]) @ V[:r] / scale


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
@pytest.mark.parametrize("weighed", [False, True])
def test_lqer_is_the_truncated_error(shape: tuple[int, int], weighed: bool) -> None:
    weight, inputs = random(*shape), random(shape[1], seed=1).abs() + 0.1
    kept, Q = kept_and_back("int8", weight)
    correction = read_recipe(f"int8+lqer:rank=3,activations={weighed}").correction
    found = correction.split(weight, choose_quantiser("int8"), inputs if weighed else None)
    scale = inputs.double().numpy() if weighed else np.ones(shape[1])
    expected = truncated((weight - Q).double().numpy(), 3, scale)
    assert np.abs((found.B.double() @ found.A.double()).numpy() - expected).max() < 1e-6
    assert torch.equal(found.kept["codes"], kept["codes"])
    assert (found.A.shape, found.B.shape) == ((3, shape[1]), (shape[0], 3))


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_loftq_finds_both_in_turn(name: str) -> None:
    weight, quantiser = random(64, 96), choose_quantiser(name)
    errors = []
    for iterations in (1, 2, 5):
        correction = read_recipe(f"{name}+loftq:rank=8,iterations={iterations}").correction
        kept, A, B = correction.split(weight, quantiser, None)
        low = np.zeros(weight.shape)
        for _ in range(iterations):
            left = torch.from_numpy(weight.double().numpy() - low).float()
            Q = quantiser.dequantise(quantiser.quantise(left), (64, 96), torch.float32)
            low = truncated((weight - Q).double().numpy(), 8, np.ones(96))
        assert np.linalg.norm((B @ A).double().numpy() - low) < 0.05 * np.linalg.norm(low)
        back = quantiser.dequantise(kept, (64, 96), torch.float32)
        errors.append(float((weight - back - B @ A).norm() / weight.norm()))
    assert errors == sorted(errors, reverse=True)


def test_inputs_are_measured_as_the_equation_says(make_language_model: Callable[..., Path]) -> None:
    """Hooks of the test's own over the same parts of the text."""
    base = load_base(record(make_language_model(), None))
    names = [name for name, module in base.model.named_modules() if isinstance(module, nn.Linear) and "layers" in name]
    found = input_magnitudes(base.model, base.tokenizer, names)
    assert set(found) == set(names)
    ids = base.tokenizer(TEXT.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    seen: list[torch.Tensor] = []
    base.model.get_submodule(names[0]).register_forward_hook(lambda module, args, out: seen.append(args[0][0]))
    for start in range(0, len(ids), 254):
        base.model(input_ids=torch.tensor([ids[start : start + 254]]))
    largest = torch.stack([x.abs().mean(0) for x in seen]).amax(0).clamp_min(1e-4).double()
    expected = largest / (largest.min() * largest.max()).sqrt()
    assert torch.allclose(found[names[0]].double(), expected, rtol=1e-4)


def test_the_text_that_bases_are_made_of_never_changes() -> None:
    digest = hashlib.sha256(TEXT.read_bytes()).hexdigest()
    assert digest == "cd2361ad65b18bf044d594c662cb3d2923127826cfbfe1553e046f117f71e2d9"


def test_a_correction_belongs_to_the_base(
    make_language_model: Callable[..., Path], tmp_path: Path, monkeypatch
) -> None:
    """Nearer to the float base, part of the fingerprint, and the same from the cache as when it is made."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    folder = make_language_model()
    plain, rough, fine = (record(folder, text) for text in (None, "int8", "int8+lqer:rank=4"))
    assert fine.quantisation == "int8:+lqer:rank=4,activations=true"
    assert len({one.fingerprint for one in (plain, rough, fine)}) == 3
    models = [load_base(one).model for one in (plain, rough, fine, fine)]
    assert len(list((tmp_path / "home").rglob("*.safetensors"))) == 1
    name = "model.layers.0.self_attn.q_proj"
    W, Q, corrected, again = (model.get_submodule(name).weight for model in models)
    assert float((W - corrected).norm()) < float((W - Q).norm())
    assert torch.equal(corrected, again)


@pytest.mark.parametrize("text", ["int8+lqer+loftq", "int8+", "lqer", "int8+nf4"])
def test_a_recipe_is_a_quantiser_and_a_correction(text: str) -> None:
    with pytest.raises(ConfigError):
        read_recipe(text)


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
