"""What every kind of site promises, in float64: `W x + b` is what torch computes, and so are its derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.pytorch_utils import Conv1D

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack, StackedFactors
from lorabank.algebra.states import StateStack
from lorabank.core.shelves import SITES
from lorabank.models.bases.blocks import of_modules, of_sites
from lorabank.models.bases.sites import as_kept, bias_of, computes, kind_of, lacking, matrix_of, site_of
from lorabank.models.bases.targets import find_targets
from lorabank.models.gates.linear import LinearGate
from lorabank.models.mixing.mixture import Mixture
from lorabank.training.layers.layer import LoraModule, fold
from tests.unit.training.plain import plain_layers

R, S = 3, 1.7


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(1))


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda: nn.Linear(5, 4), numbers(3, 6, 5)),
    "conv1d": (lambda: Conv1D(4, 5), numbers(3, 6, 5)),
    "embedding": (lambda: nn.Embedding(11, 4), tokens(3, 6)),
    "embedding of padding": (lambda: nn.Embedding(11, 4, padding_idx=5), tokens(3, 6)),
    "embedding by frequency": (lambda: nn.Embedding(11, 4, scale_grad_by_freq=True), tokens(3, 6)),
    "embedding of bart": (lambda: BartScaledWordEmbedding(11, 4, 1, embed_scale=3.0), tokens(3, 6)),
    "embedding of gemma": (lambda: Gemma3TextScaledWordEmbedding(11, 4, 1, embed_scale=2.5), tokens(3, 6)),
    "conv1d-nn": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), numbers(3, 4, 9)),
    "conv1d-nn of width 1": (lambda: nn.Conv1d(4, 6, 1, bias=False), numbers(3, 4, 6)),
    "conv1d-nn same": (lambda: nn.Conv1d(4, 6, 4, padding="same", dilation=2), numbers(3, 4, 9)),
    "conv1d-nn around": (lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"), numbers(3, 4, 9)),
    "conv1d-nn alone": (lambda: nn.Conv1d(4, 6, 3, padding=1), numbers(4, 9)),
    "conv1d-nn groups": (lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2), numbers(3, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1)), numbers(3, 4, 7, 6)),
    "conv2d mirror": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), numbers(3, 4, 5, 6)),
    "conv2d groups": (lambda: nn.Conv2d(4, 6, (2, 3), groups=2, stride=2), numbers(3, 4, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (1, 1, 3), padding=(0, 0, 1)), numbers(3, 2, 3, 2, 5)),
    "conv3d groups": (lambda: nn.Conv3d(4, 6, (2, 1, 3), groups=2, padding=1), numbers(2, 4, 3, 2, 5)),
}  # fmt: skip
"""A kind's name, and what is special about the module; the module and an input."""
ODD = [name for name in CASES if not name.startswith("linear") and name != "conv1d"]
WHOLE = [name for name in ODD if not name.endswith("groups")]


def module_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    module = CASES[name][0]().double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


class Holder(nn.Module):
    """A model with one module, whose answer it returns."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.it = module_of(name)

    def forward(self, x: Tensor) -> Tensor:
        return self.it(x)


def adapter(model: Holder, seed: int, r: int = R, *, gain: bool = False) -> LoraFactors:
    """A random adapter on the module, by its groups where it has some."""
    sites = find_targets(model, "it", ()).sites
    dice = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=dice, dtype=torch.float64)

    A = {site.name: random(r, site.d_in) for site in sites}
    B = {site.name: random(site.d_out, r) for site in sites}
    gains = {site.name: 1 + 0.3 * random(site.d_out) for site in sites} if gain else {}
    return of_modules(LoraFactors(A, B, dict.fromkeys(A, S), gains), sites)


def dense(name: str, *terms: tuple[float, LoraFactors]) -> nn.Module:
    """The module with a weighted sum of adapters in its weight, which is computed here by itself."""
    module = module_of(name)
    W = matrix_of(module)
    total = W.clone()
    for weight, factors in terms:
        gain = factors.gain.get("it", torch.ones(len(W), dtype=torch.float64))
        total += weight * ((gain - 1)[:, None] * W + factors.scaling["it"] * factors.B["it"] @ factors.A["it"])
    with torch.no_grad():
        module.weight.copy_(as_kept(module, total))
    return module


def single(x: Tensor) -> Tensor:
    """As the modules take it in float32."""
    return x.float() if x.is_floating_point() else x


def check(found: Tensor, expected: Tensor) -> None:
    """In float32 what was computed in float64."""
    torch.testing.assert_close(
        found.double(), expected, rtol=1e-5, atol=1e-5 * max(1.0, float(expected.detach().abs().max()))
    )


def test_every_kind_on_the_shelf_is_tried() -> None:
    elsewhere = {"quantised", "bias"}  # tests/unit/models/bases/test_quantised.py, tests/contract/test_biases.py
    assert {name.split()[0] for name in CASES} == set(SITES.table) - elsewhere


@pytest.mark.parametrize("name", CASES)
def test_the_matrix_and_the_rows_give_the_answer(name: str) -> None:
    module, x = module_of(name), CASES[name][1]
    kind, bias = kind_of(module), bias_of(module)
    assert kind is SITES.load(name.split()[0]) or isinstance(kind, SITES.load(name.split()[0]))
    assert computes(module)
    W = matrix_of(module)
    assert W.shape == kind.sizes(module)
    out = module(x)
    y = kind.read(module, kind.rows(module, x), W)
    y = y if bias is None else y + bias
    torch.testing.assert_close(kind.answer(module, y), out)
    torch.testing.assert_close(kind.answer_rows(module, out), y)
    torch.testing.assert_close(kind.call(module, x, W, bias), out)
    torch.testing.assert_close(as_kept(module, W), module.weight)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_the_matrix_is_the_outer_product(name: str) -> None:
    """Of a table without what torch leaves out for its padding and divides by how often a token stands there."""
    module, x = module_of(name), CASES[name][1]
    if isinstance(module, nn.Embedding):
        module.padding_idx, module.scale_grad_by_freq = None, False
    kind = kind_of(module)
    out = module(x)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(out, module.weight, g)
    u, rows = kind.answer_rows(module, g), kind.rows(module, x)
    found = kind.outer(module, u.reshape(-1, u.shape[-1]), rows.reshape(-1, rows.shape[-1]))
    torch.testing.assert_close(as_kept(module, found), gradient)  # outside of groups it is not asked for
    inputs = kind.inputs(module, rows.reshape(-1, rows.shape[-1]))
    read = (inputs.double() @ matrix_of(module).T).to_dense() if inputs.is_sparse else inputs @ matrix_of(module).T
    torch.testing.assert_close(read, kind.read(module, rows, matrix_of(module)).reshape(read.shape))


@pytest.mark.parametrize("name", ODD)
def test_a_layer_answers_and_learns_as_the_dense_weight_does(name: str) -> None:
    """The factors' gradients are those that the chain rule makes of the gradient of W + s B A."""
    model, x = Holder(name).requires_grad_(False), CASES[name][1]
    sites = find_targets(model, "it", ()).sites
    dice = torch.Generator().manual_seed(5)
    A = {site.name: torch.randn(R, site.d_in, generator=dice, dtype=torch.float64) for site in sites}
    B = {site.name: torch.randn(site.d_out, R, generator=dice, dtype=torch.float64) for site in sites}
    start = LoraFactors(A, B, dict.fromkeys(A, S))
    layers = plain_layers(model, list(A), r=R, lora_alpha=R * S, initial=start)
    assert all(isinstance(layer, LoraModule) for layer in layers.values())
    out = model(x)
    peer = dense(name, (1.0, of_modules(start, sites)))
    expected = peer(x)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    g = torch.randn(out.shape, generator=dice, dtype=torch.float64)
    (of_weight,) = torch.autograd.grad(expected, peer.weight, g)
    of_A = of_B = kind_of(peer).matrix(peer, of_weight)
    if isinstance(peer, nn.Embedding):  # padding and frequencies are about the rows of a table: about A
        peer.padding_idx, peer.scale_grad_by_freq = None, False
        of_B = torch.autograd.grad(peer(x), peer.weight, g)[0].T
    out.backward(g)
    for site in sites:
        rows, columns = site.rows or slice(None), site.columns or slice(None)
        layer, for_A, for_B = layers[site.name], of_A[rows, columns], of_B[rows, columns]
        torch.testing.assert_close(layer.lora_A.grad, S * B[site.name].T @ for_A, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(layer.lora_B.grad, S * for_B @ A[site.name].T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ODD)
def test_the_past_in_the_weight_is_the_sum(name: str) -> None:
    model, x = Holder(name).float(), CASES[name][1]
    one, two = adapter(model, 1), adapter(model, 2, gain=True)
    fold(model, AdapterStack.build({"one": one, "two": two}))
    check(model(single(x)), dense(name, (1.0, one), (1.0, two))(x))


@torch.no_grad()
@pytest.mark.parametrize("gain", [False, True], ids=["plain", "gain"])
@pytest.mark.parametrize("name", ODD)
def test_every_mixture_is_the_dense_sum(name: str, gain: bool) -> None:
    model, x = Holder(name).float(), CASES[name][1]
    own = single(x)
    adapters = {f"{k}": adapter(model, k, r=k + 1, gain=gain and k != 1) for k in range(3)}
    bare, before = model(own), {key: value.clone() for key, value in model.state_dict().items()}
    stack = AdapterStack.build(adapters)
    mixture = Mixture(model, stack)

    def terms(weights: Tensor) -> list[tuple[float, LoraFactors]]:
        return [(float(w), one) for w, one in zip(weights, adapters.values(), strict=True)]

    weights = torch.tensor([0.5, -1.0, 2.0])
    mixture.merge(weights)
    check(model(own), dense(name, *terms(weights))(x))
    if x.dim() > 2 or not x.is_floating_point():  # three samples
        each = torch.tensor([[1.0, 0.0, 0.5], [0.0, -1.0, 0.0], [0.3, 0.0, 2.0]])[: len(x)]
        mixture.per_sample(each)
        expected = torch.cat([dense(name, *terms(w))(x[i : i + 1]) for i, w in enumerate(each)])
        check(model(own), expected)
    members = StateStack.apart(stack)
    gate = LinearGate(members)
    mixture.attend(gate, members)
    out = model(own)
    module = module_of(name)
    kind = kind_of(module)
    rows = kind.rows(module, x)
    one_hot = kind.inputs(module, rows.reshape(-1, rows.shape[-1])).to(torch.float64)
    x_rows = one_hot.to_dense() if one_hot.is_sparse else one_hot
    shares = (x_rows @ gate.router["it"].double().T).softmax(-1)
    bias, W = bias_of(module), matrix_of(module)
    y = x_rows @ W.T + (0 if bias is None else bias)
    for k, (_, one) in enumerate(terms(weights)):
        y = y + shares[:, k : k + 1] * (x_rows @ one.delta("it", W).T)
    shape = kind.answer_rows(module, out).shape
    check(out, kind.answer(module, y.view(shape)))
    mixture.off()
    assert torch.equal(model(own), bare)
    mixture.detach()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_who_reads_a_table_reads_the_bases() -> None:
    """A language model's logits may be made of it, and an adapter on the embedding does not change those."""
    model = Holder("embedding")
    mixture = Mixture(model.float(), AdapterStack.build({"a": adapter(model, 1)}))
    mixture.merge(torch.ones(1))
    assert torch.equal(model.it.weight, module_of("embedding").float().weight)


@pytest.mark.parametrize("name", [name for name in ODD if name.endswith("groups")])
def test_an_adapter_on_groups_is_one_on_the_block_diagonal_matrix(name: str) -> None:
    model = Holder(name)
    sites = find_targets(model, "it", ()).sites
    assert [site.name for site in sites] == ["it.0", "it.1"]
    whole = adapter(model, 1)
    assert len(whole.A["it"]) == 2 * R
    delta = whole.delta("it")
    outside = delta.clone()
    for site in sites:
        assert torch.equal(site.weight(), matrix_of(model.it)[site.rows][:, site.columns].float())
        assert outside[site.rows, site.columns].any()
        outside[site.rows, site.columns] = 0
    assert not outside.any()
    assert not matrix_of(model.it)[sites[0].rows, sites[1].columns].any()
    parts = of_sites(AdapterStack.build({"one": whole}, dtype=torch.float64), sites)
    for site in sites:
        own: StackedFactors = parts.modules[site.name]
        assert own.A.shape == (R, site.d_in)
        torch.testing.assert_close(S * own.B @ own.A, delta[site.rows, site.columns])


def max_norm() -> nn.Module:
    return nn.Embedding(11, 4, max_norm=1.0)


class Positions(nn.Embedding):
    """As BART's: it makes its own numbers of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 2)


class Own(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a norm": (max_norm, r"Embedding rewrites its own weight in each pass \(max_norm\)"),
    "positions": (lambda: Positions(11, 4), "Positions does more than look its input up"),
    "depthwise": (lambda: nn.Conv1d(4, 8, 3, groups=4), "Conv1d reads every channel by itself, which has no low rank"),
    "own forward": (lambda: Own(4, 8, 3), r"Own is not a plain torch\.nn\.Conv1d"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_matrix_is_refused_with_the_reason(name: str) -> None:
    make, reason = REFUSED[name]
    module = make()
    assert not computes(module)
    model = nn.ModuleDict({"it": module, "other": nn.Linear(2, 2)})
    from lorabank.core.errors import IncompatibleError

    with pytest.raises(IncompatibleError, match=reason) as caught:
        find_targets(model, "it", ())
    assert "\n" not in str(caught.value)
    assert lacking(module) in str(caught.value)


def test_all_linear_leaves_tables_and_convolutions_alone() -> None:
    model = nn.ModuleDict({name.replace(" ", "_"): module_of(name) for name in CASES})
    found = find_targets(model, "all-linear", ())
    assert set(found.names) == {"linear", "conv1d"}
    assert found.notice is None
    named = find_targets(model, "conv2d,embedding,linear", ())
    assert [site.kind for site in named.sites] == ["linear", "embedding", "conv2d"]
    assert site_of(model, "conv1d-nn").kind == "conv1d-nn"
