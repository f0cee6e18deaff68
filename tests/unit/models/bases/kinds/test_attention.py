"""torch's attention as linear layers: beside torch, beside sums of dense matrices, and beside PEFT."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.errors import IncompatibleError
from lorabank.exchange.placed.fused_attention import with_attention
from lorabank.exchange.untrusted_adapter import read_foreign
from lorabank.models.bases.kinds.attention import INPUTS, OUTPUT, Attention, attention_in, unroll_attention
from lorabank.models.bases.targets import find_targets
from lorabank.models.mixing.mixture import Mixture
from tests.unit.models.torch_encoder import TorchForSequenceClassification, make
from tests.unit.training.plain import plain_layers

D, H, R, ALPHA = 12, 3, 2, 3.0
IDS = torch.tensor([[3, 5, 7, 2, 9], [8, 1, 1, 4, 6]])
PADDED = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
STEM = "body.encoder.layers.0.self_attn"
EXACT = {"rtol": 1e-12, "atol": 1e-12}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(**settings: Any) -> nn.MultiheadAttention:
    torch.manual_seed(1)
    module = nn.MultiheadAttention(D, H, **settings).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def unrolled(module: nn.Module) -> nn.Module:
    holder = nn.ModuleDict({"it": module})
    unroll_attention(holder)
    return holder["it"]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"kdim": 7, "vdim": 5},
    {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
]
CAUSAL = torch.ones(4, 4, dtype=torch.bool).triu(1)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"attn_mask": torch.ones(4, 6, dtype=torch.bool).triu(3)},
        {"attn_mask": random(2 * H, 4, 6), "average_attn_weights": False},
        {"key_padding_mask": torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=torch.bool)},
        {"attn_mask": random(4, 6), "key_padding_mask": random(2, 6)},
    ],
    ids=["none", "bool", "by head", "padding", "both"],
)
def test_it_answers_as_torch_does(settings: dict[str, Any], weights: bool, masks: dict[str, Any]) -> None:
    theirs = attention(**settings).eval()
    ours = unrolled(attention(**settings).eval())
    x, keys, values = random(4, 2, D), random(6, 2, theirs.kdim, seed=1), random(6, 2, theirs.vdim, seed=2)
    if theirs.batch_first:
        x, keys, values = (one.transpose(0, 1) for one in (x, keys, values))
    answers = (module(x, keys, values, need_weights=weights, **masks) for module in (ours, theirs))
    for found, expected in zip(*answers, strict=True):
        if expected is None:
            assert found is None
        else:
            torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("weights", [False, True])
def test_one_text_without_a_batch(weights: bool) -> None:
    x = random(5, D)
    pairs = zip(*(m(x, x, x, need_weights=weights) for m in (unrolled(attention()), attention())), strict=True)
    for found, expected in pairs:
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected, **EXACT)


def test_the_hint_of_a_causal_mask_is_no_mask() -> None:
    x, module = random(4, 2, D), unrolled(attention())
    found, _ = module(x, x, x, attn_mask=CAUSAL, is_causal=True, need_weights=False)
    expected, _ = attention()(x, x, x, attn_mask=CAUSAL, is_causal=True, need_weights=False)
    torch.testing.assert_close(found, expected, **EXACT)
    with pytest.raises(RuntimeError, match="is_causal"):
        module(x, x, x, is_causal=True)


def test_dropout_is_on_the_weights_while_training() -> None:
    """With one key every weight is 1, dropped to 0 or raised to 2; in evaluation nothing is dropped."""
    module = unrolled(attention(dropout=0.5).train())
    query, key = random(3, 50, D), random(1, 50, D)
    torch.manual_seed(0)
    _, weights = module(query, key, key, average_attn_weights=False)
    assert set(weights.unique().tolist()) == {0.0, 2.0}
    _, weights = module.eval()(query, key, key)
    assert torch.equal(weights, torch.ones_like(weights))


def test_no_number_lies_in_memory_twice() -> None:
    theirs = attention()
    ours: Any = unrolled(theirs)
    for i, name in enumerate(INPUTS):
        layer = ours.get_submodule(name)
        assert layer.weight.data_ptr() == theirs.in_proj_weight[i * D :].data_ptr()
        assert layer.bias.data_ptr() == theirs.in_proj_bias[i * D :].data_ptr()
    assert ours.out_proj is theirs.out_proj
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_a_subclass_of_its_own_is_left_alone() -> None:
    class Other(nn.MultiheadAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    assert isinstance(unrolled(Other(D, H)), Other)


def test_a_module_in_two_places_stays_one() -> None:
    module = attention()
    holder = nn.ModuleDict({"one": module, "two": module})
    unroll_attention(holder)
    assert isinstance(holder["one"], Attention)
    assert holder["one"] is holder["two"]


# ---------------------------------------------------------------------------------------------------- in an encoder


def encoder(**config: Any) -> TorchForSequenceClassification:
    model = make(**config).requires_grad_(False)
    unroll_attention(model)
    return model


def adapter(names: list[str], r: int = R, seed: int = 0) -> LoraFactors:
    """On some layers by their names in ``layers.0``, with random numbers."""
    dice, model = torch.Generator().manual_seed(seed), encoder()
    layers = {name: model.get_submodule(name) for name in names}
    return LoraFactors(
        {name: torch.randn(r, layer.in_features, generator=dice) / 4 for name, layer in layers.items()},
        {name: torch.randn(layer.out_features, r, generator=dice) / 4 for name, layer in layers.items()},
        dict.fromkeys(names, ALPHA / R),
    )


def changed(*terms: tuple[float, LoraFactors], **config: Any) -> TorchForSequenceClassification:
    """torch's model with adapters added to its own parameters."""
    model = make(**config).requires_grad_(False)
    for weight, factors in terms:
        for name in factors.A:
            stem, _, part = name.rpartition(".")
            module: Any = model.get_submodule(stem)
            delta = weight * factors.delta(name)
            if part in INPUTS:
                module.in_proj_weight.data.chunk(3)[INPUTS.index(part)].add_(delta)
            else:
                module.get_submodule(part).weight.data.add_(delta)
    return model


def parts(stem: str = STEM) -> list[str]:
    return [f"{stem}.{part}" for part in (*INPUTS, OUTPUT)]


@torch.no_grad()
def test_the_fused_kernels_of_the_encoder_are_not_taken() -> None:
    """torch computes a whole `nn.TransformerEncoderLayer` at once; here all of its layers are asked."""
    model, theirs = encoder(fused=True), make(fused=True)
    one = adapter(["body.encoder.layers.0.linear1", "body.encoder.layers.1.linear2", *parts()])
    for chosen in (None, one):
        if chosen:
            Mixture(model, AdapterStack.build({"one": chosen})).merge(torch.ones(1))
        plain = changed((1.0, chosen), fused=True) if chosen else theirs
        found = model.body(IDS, PADDED).last_hidden_state
        expected = plain.body(IDS, PADDED).last_hidden_state
        torch.testing.assert_close(found[PADDED == 1], expected[PADDED == 1], **CLOSE)


@pytest.mark.parametrize("chosen", [parts(), parts()[:1], parts()[2:], [*parts(), *parts(STEM.replace("0", "1"))]])
@torch.no_grad()
def test_adapters_are_mixed_as_sums_of_dense_matrices(chosen: list[str]) -> None:
    one, two = adapter(chosen, seed=1), adapter(chosen[-1:], r=1, seed=2)
    model = encoder()
    bare = model(IDS, PADDED).logits
    mixture = Mixture(model, AdapterStack.build({"one": one, "two": two}))
    mixture.merge(torch.tensor([0.5, -1.0]))
    expected = changed((0.5, one), (-1.0, two))(IDS, PADDED).logits
    torch.testing.assert_close(model(IDS, PADDED).logits, expected, **CLOSE)
    assert not torch.allclose(expected, bare, atol=1e-2)
    mixture.detach()
    assert torch.equal(model(IDS, PADDED).logits, bare)


def test_auto_finds_query_and_value() -> None:
    assert find_targets(encoder(), "auto", ("classifier",)).names == tuple(
        f"body.encoder.layers.{i}.self_attn.{part}" for i in range(2) for part in ("q_proj", "v_proj")
    )
    every = find_targets(encoder(), "all-linear", ("classifier",)).names
    assert len(every) == 2 * (4 + 2)


def test_the_factors_learn_from_the_gradient_of_the_parameter() -> None:
    chosen = parts()
    start = adapter(chosen, seed=3)
    model, peer = encoder(), changed((1.0, start))
    layers = plain_layers(model, chosen, r=R, lora_alpha=ALPHA, initial=start)
    own: Any = peer.get_submodule(STEM)
    own.requires_grad_(True)
    for network in (model, peer):
        network(IDS, PADDED, labels=torch.tensor([0, 1])).loss.backward()
    gradients = dict(zip(parts(), (*own.in_proj_weight.grad.chunk(3), own.out_proj.weight.grad), strict=True))
    for name, layer in layers.items():
        s, A, B = ALPHA / R, start.A[name], start.B[name]
        torch.testing.assert_close(layer.lora_A.grad, s * B.T @ gradients[name], **CLOSE)
        torch.testing.assert_close(layer.lora_B.grad, s * gradients[name] @ A.T, **CLOSE)


# --------------------------------------------------------------------------------------------------------- and PEFT


def with_peft() -> Any:
    """PEFT's own adapter on the attention of the first layer, with random numbers."""
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=[STEM])
    model = peft.get_peft_model(make(), config)
    dice = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=dice) / 4)
    return model


def test_peft_learns_the_same() -> None:
    """Its B of three blocks shares one A, whose gradient is the sum over the blocks.

    Its adapter on the output is 0: PEFT 0.21.2 adds that twice, which the last lines hold.
    """
    theirs = with_peft().train()
    tensors = {name: p for name, p in theirs.named_parameters() if "lora" in name}
    whole, out = ([tensors[f"base_model.model.{STEM}{on}.lora_{kind}.default.weight"] for kind in "AB"]
                  for on in ("", ".base_layer.out_proj"))  # fmt: skip
    twice = out[1].detach().clone()
    out[1].data.zero_()
    A = {name: whole[0].detach().clone() for name in parts()[:3]}
    B = {name: one.detach().clone() for name, one in zip(parts(), whole[1].chunk(3), strict=False)}
    model, own = encoder().train(), LoraFactors(A, B, dict.fromkeys(A, ALPHA / R))
    layers = plain_layers(model, parts()[:3], r=R, lora_alpha=ALPHA, initial=own)
    labels = torch.tensor([0, 1])
    losses = [network(input_ids=IDS, attention_mask=PADDED, labels=labels).loss for network in (model, theirs)]
    torch.testing.assert_close(*losses, **CLOSE)
    for loss in losses:
        loss.backward()
    of_A, of_B = ([getattr(layer, leaf).grad for layer in layers.values()] for leaf in ("lora_A", "lora_B"))
    torch.testing.assert_close(whole[0].grad, sum(of_A), **CLOSE)
    torch.testing.assert_close(whole[1].grad, torch.cat(of_B), **CLOSE)
    out[1].data.copy_(twice)
    last = LoraFactors({parts()[3]: out[0].detach()}, {parts()[3]: twice}, {parts()[3]: ALPHA / R})
    with torch.no_grad():
        found = theirs(input_ids=IDS, attention_mask=PADDED).logits
        torch.testing.assert_close(found, changed((1.0, own), (2.0, last))(IDS, PADDED).logits, **CLOSE)


def test_peft_itself_does_nothing_on_the_output_alone() -> None:
    """So such an adapter is refused where it is imported."""

    A, B = torch.ones(R, 32), torch.ones(32, R)
    tensors = {f"base_model.model.{STEM}.out_proj.lora_{kind}.weight": t for kind, t in (("A", A), ("B", B))}
    config = {"peft_type": "LORA", "r": R, "lora_alpha": 4, "target_modules": ["out_proj"]}
    foreign = read_foreign(config, save(tensors))
    assert attention_in(encoder()) == {STEM, STEM.replace("0", "1")}
    with pytest.raises(IncompatibleError, match="PEFT never asks its adapter"):
        with_attention(foreign, encoder())
    config["target_modules"] = ["self_attn"]
    whole = {
        f"base_model.model.{STEM}.lora_{kind}.weight": t for kind, t in (("A", A.clone()), ("B", torch.ones(96, R)))
    }
    whole |= {key.replace(".out_proj", ".base_layer.out_proj"): t for key, t in tensors.items()}
    with pytest.raises(IncompatibleError, match="twice in each pass"):
        with_attention(read_foreign(config, save(whole)), encoder())
