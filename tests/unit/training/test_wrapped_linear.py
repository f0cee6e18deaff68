"""Every layer that stands in the place of a linear one behaves as it does: what models do with their linear layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.algebra.states import StateStack
from lorabank.core.errors import IncompatibleError
from lorabank.models.bases.passed_by import check_called
from lorabank.models.bases.sites import WrappedLinear
from lorabank.models.gates.attention_token import Selector
from lorabank.models.mixing.mixture import Mixture
from lorabank.training.layers.layer import EffectiveWeights, fold
from lorabank.training.online_attention import attach_attended_adapter
from tests.unit.training.plain import context_of, plain, plain_layers

D_IN, D_OUT, R = 8, 6, 2


class Holder(nn.Module):
    """A model of one linear layer."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.proj = nn.Linear(D_IN, D_OUT, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out


def adapters(count: int = 2) -> AdapterStack:
    dice = torch.Generator().manual_seed(1)
    return AdapterStack.build(
        {
            f"a{k}": LoraFactors(
                {"proj": torch.randn(R, D_IN, generator=dice)},
                {"proj": torch.randn(D_OUT, R, generator=dice)},
                {"proj": 0.5},
            )
            for k in range(count)
        }
    )


def trainable(model: Holder, dropout: float = 0.0) -> WrappedLinear:
    layers = plain_layers(model, ["proj"], r=R, lora_alpha=4, dropout=dropout)
    nn.init.normal_(layers["proj"].lora_B)
    return layers["proj"]


def effective(model: Holder) -> WrappedLinear:
    layer = trainable(model)
    EffectiveWeights([layer], tokens=1e6)  # type: ignore[list-item]
    assert layer.effective is not None
    return layer


def attended(model: Holder, targets: list[str]) -> nn.Module:
    new = plain(context_of(model, targets, r=R, lora_alpha=4)).factors()
    attach_attended_adapter(model, new, adapters(), dropout=0.1)
    return model.proj


def mixed(model: Holder, enter: Callable[[Mixture, AdapterStack], None]) -> nn.Module:
    stack = adapters()
    enter(Mixture(model, stack), stack)
    return model.proj


def select(mixture: Mixture, stack: AdapterStack) -> None:
    members = StateStack.apart(stack)
    mixture.attend(Selector(members), members)


def per_sample(form: str) -> Callable[[Mixture, AdapterStack], None]:
    def enter(mixture: Mixture, stack: AdapterStack) -> None:
        mixture.per_sample(torch.eye(2)[[0, 0, 1, 1]])
        layer = next(iter(mixture._layers.values()))
        routes = layer.form._routes  # type: ignore[union-attr]
        routes._forms = {tokens: getattr(routes, form)() for tokens in (1, 3)}

    return enter


LAYERS: dict[str, Callable[[Holder], nn.Module]] = {
    "training": trainable,
    "training with dropout": lambda model: trainable(model, 0.5),
    "training, effective weight": effective,
    "training, attention": lambda model: attended(model, ["proj"]),
    "training, attention over earlier adapters": lambda model: attended(model, []),
    "off": lambda model: mixed(model, lambda mixture, _: mixture.off()),
    "merged": lambda model: mixed(model, lambda mixture, _: mixture.merge(torch.ones(2))),
    "masked": lambda model: mixed(model, per_sample("masked")),
    "segments": lambda model: mixed(model, per_sample("segments")),
    "stacked": lambda model: mixed(model, per_sample("stacked")),
    "attention": lambda model: mixed(model, select),
}


@pytest.fixture(params=LAYERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("bias", [True, False])
def test_what_models_read(kind: str, bias: bool) -> None:
    model = Holder(bias=bias)
    plain = model.proj
    plain.note = "set by a model"
    layer = LAYERS[kind](model)
    assert model.proj is layer is not plain
    assert (layer.in_features, layer.out_features, layer.note) == (D_IN, D_OUT, "set by a model")
    assert layer.bias is plain.bias
    for fact in ("shape", "dtype", "device"):
        assert getattr(layer.weight, fact) == getattr(plain.weight, fact)
    with pytest.raises(AttributeError):
        _ = layer.nothing_of_the_kind


@pytest.mark.parametrize("shape", [(4, D_IN), (4, 3, D_IN)])
def test_the_output_may_be_changed_in_place(kind: str, shape: tuple[int, ...]) -> None:
    """OLMo clamps its projections, Longformer divides its queries, DeBERTa adds to them: all in place."""

    def gradients(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        torch.manual_seed(2)
        model = Holder(bias=True)
        LAYERS[kind](model)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(3), requires_grad=True)
        torch.manual_seed(4)
        out = change(model(x))
        out.square().sum().backward()
        learnt = [p.grad for p in model.parameters() if p.grad is not None]
        assert learnt or not kind.startswith("training")
        return [out.detach(), x.grad, *learnt]

    expected = gradients(lambda y: (y / 2).clamp(-0.8, 0.8))
    found = gradients(lambda y: y.div_(2).clamp_(-0.8, 0.8))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(0, D_IN), (0, 3, D_IN), (D_IN,)])
@pytest.mark.parametrize(
    "form", ["training", "training, effective weight", "training, attention", "merged", "attention"]
)
def test_inputs_without_rows(form: str, shape: tuple[int, ...]) -> None:
    """An expert gets no token of some batches."""
    model = Holder(bias=True)
    expected = model(torch.zeros(shape)).shape
    LAYERS[form](model)
    x = torch.zeros(shape, requires_grad=True)
    found = model(x)
    assert found.shape == expected
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape


def test_the_weight_of_a_merged_layer_is_the_one_that_answers() -> None:
    """Fused kernels compute with the weight that they read."""
    model = Holder(bias=True)
    x = torch.randn(4, D_IN)
    mixed(model, lambda mixture, _: mixture.merge(torch.ones(2)))
    torch.testing.assert_close(functional.linear(x, model.proj.weight, model.proj.bias), model(x))
    assert not torch.equal(model.proj.weight, model.proj.base.weight)


def test_two_wrappers_on_each_other() -> None:
    """Adapters beside an adapter that is trained: the inner layer is a linear layer to the outer one."""
    model = Holder(bias=True)
    trainable(model)
    x = torch.randn(4, D_IN)
    alone = model(x)
    stack = adapters()
    mixture = Mixture(model, stack)
    torch.testing.assert_close(model(x), alone)
    mixture.per_sample(torch.eye(2)[[0, 0, 1, 1]])
    deltas = [stack.modules["proj"].delta(row) for row in torch.eye(2)]
    expected = torch.stack([alone[i] + deltas[i // 2] @ x[i] for i in range(4)])
    torch.testing.assert_close(model(x), expected)


def test_a_shared_weight_is_folded_into_where_it_is_adapted_alone() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"proj": nn.Linear(D_IN, D_OUT), "other": nn.Linear(D_IN, D_OUT)})
    model["other"].weight = model["proj"].weight
    before = model["other"].weight.detach().clone()
    stack = adapters()
    fold(model, stack)
    torch.testing.assert_close(model["other"].weight, before)
    torch.testing.assert_close(model["proj"].weight, before + stack.modules["proj"].delta(torch.ones(2)))


class Fused(Holder):
    """A kernel that computes with a layer's weight and never calls the layer."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.proj.weight, self.proj.bias)


@pytest.mark.parametrize("kind", ["training", "training, attention", "masked", "attention"])
def test_an_adapter_that_the_model_passes_by_is_refused(kind: str) -> None:
    model, sound = Fused(bias=True), Holder(bias=True)
    passed, called = LAYERS[kind](model), LAYERS[kind](sound)
    check_called({"proj": passed, "other": called})  # no pass was made yet
    x = torch.randn(4, D_IN)
    for one in (model, sound):
        one(x)
    assert sound.proj.weight.dtype == torch.float32  # T5 asks for it, and calls the layer
    check_called({"proj": called})
    with pytest.raises(IncompatibleError, match="reads the weight of 'proj' and never calls it"):
        check_called({"proj": passed, "other": called}, hint="leave it out")


def test_what_answers_behind_a_fused_kernel() -> None:
    """A merged weight is what the kernel reads; an adapter for each row would be lost, one of zeros is not missed."""
    x, stack = torch.randn(4, D_IN), adapters()
    model, sound = Fused(bias=True), Holder(bias=True)
    mixtures = [Mixture(model, stack), Mixture(sound, stack)]
    for mixture in mixtures:
        mixture.merge(torch.ones(2))
    torch.testing.assert_close(model(x), sound(x))
    mixtures[0].check_called()
    mixtures[0].per_sample(torch.eye(2)[[0, 0, 1, 1]])
    model(x)
    with pytest.raises(IncompatibleError, match="never calls it"):
        mixtures[0].check_called()
    stack.modules["proj"].B.zero_()
    mixtures[0].check_called()
