"""Variants that freeze or share factors or make them as products, against float64 by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorabank.core.config import LEARNING_RATE, TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.shelves import VARIANTS
from lorabank.training.methods import chosen_methods, filled_in, learning_rate
from lorabank.training.variants.loretta import mode_sizes
from tests.unit.training.variants.test_variants import ALPHA, R, Trial, close, load, loss

S = ALPHA / R


# ------------------------------------------------------------------------- delta weights by hand, and their gradients


def _rows_and_columns(p: Any, k: int, site: Any) -> Tensor:
    return S * p.B[k].double() @ p.A[k].double()


def _vera(p: Any, k: int, site: Any) -> Tensor:
    B, A = p.B[: site.d_out].double(), p.A[:, : site.d_in].double()
    return torch.einsum("o,or,r,ri->oi", p.b[k].double(), B, p.d[k].double(), A)


def _nola(p: Any, k: int, site: Any) -> Tensor:
    found = []
    for sums in (p.of_B, p.of_A):
        (fixed,), (random,) = sums._begun.values(), sums._random
        total = fixed[k].double()
        for weight, matrix in zip(sums.weights[0][k].double(), random.double(), strict=True):
            total = total + weight * matrix.view(fixed.shape[1:])
        found.append(total)
    return S * found[0] @ found[1]


def _tied(p: Any, k: int, site: Any) -> Tensor:
    factors = (p.v[k], p.B[0], p.u[k], p.A[0])
    return S * torch.einsum("o,or,r,ri->oi", *(factor.double() for factor in factors))


def _vb_lora(p: Any, k: int, site: Any) -> Tensor:
    """By weights over the whole bank, 0 outside of the highest logits; less the product at the start."""

    def mixed(logits: Tensor) -> Tensor:
        logits = logits.double()
        kept = logits >= logits.sort(descending=True).values[..., 1:2]
        return logits.masked_fill(~kept, -math.inf).softmax(-1) @ p.bank.double()

    A = torch.cat(list(mixed(p.logits_A[k]).unbind(1)), 1)
    B = torch.cat([part.mT for part in mixed(p.logits_B[k]).unbind(0)])
    start = p.shift()
    return B @ A - start.B[site.name].double() @ start.A[site.name].double()


def _lora_xs(p: Any, k: int, site: Any) -> Tensor:
    U, values, V = torch.linalg.svd(site.weight().double(), full_matrices=False)
    U, V = (_signed(U.mT, p._U[site.name].mT).mT, _signed(V, p.A[k]))
    return S * U[:, :R] @ p.R[k].double() @ values[:R].diag() @ V[:R]


def _signed(rows: Tensor, like: Tensor) -> Tensor:
    """Singular vectors with the signs of ours: a decomposition leaves them open."""
    signs = (rows[: len(like)] * like.double()).sum(1).sign()
    return torch.cat([rows[: len(like)] * signs[:, None], rows[len(like) :]])


def _trilora(p: Any, k: int, site: Any) -> Tensor:
    return S * p.B[k].double() @ p.e[k].double().diag() @ p.A[k].double()


def _lotr(p: Any, k: int, site: Any) -> Tensor:
    return S * p.left[0].double() @ p.core[k].double() @ p.right[0].double()


def _loretta(p: Any, k: int, site: Any) -> Tensor:
    rows, columns = (
        torch.einsum("xra,aib,bjc,cky->rijk", *(core.double() for core in train)).flatten(1)
        for train in (p.A[k], p.B[k])
    )
    return S * columns.mT @ rows


def _melora(p: Any, k: int, site: Any) -> Tensor:
    """Ranks 2 and 1: each block by itself."""
    delta = torch.zeros(site.d_out, site.d_in, dtype=torch.float64)
    out, into = site.d_out // 2, site.d_in // 2
    blocks = [ALPHA / len(a) * b.double() @ a.double() for a, b in zip(p.A[k], p.B[k], strict=True)]
    assert [len(a) for a in p.A[k]] == [2, 1]
    return delta.index_put(
        (torch.arange(site.d_out)[:, None], torch.arange(site.d_in)[None, :]),
        torch.cat([torch.cat([blocks[0], blocks[0].new_zeros(out, into)], 1),
                   torch.cat([blocks[1].new_zeros(out, into), blocks[1]], 1)]),
    )  # fmt: skip


BY_HAND: dict[str, tuple[Callable[[Any, int, Any], Tensor], tuple[str, ...]]] = {
    "lora-fa": (_rows_and_columns, ()),
    "asymmetric": (_rows_and_columns, ()),
    "vera": (_vera, ()),
    "nola": (_nola, ("bases=7",)),
    "tied-lora": (_tied, ()),
    "vb-lora": (_vb_lora, ("num_vectors=5", "vector_length=8", "bound=0.5")),
    "lora-xs": (_lora_xs, ()),
    "trilora": (_trilora, ()),
    "lotr": (_lotr, ()),
    "loretta": (_loretta, ()),
    "melora": (_melora, ()),
}


@pytest.mark.parametrize("variant", BY_HAND)
def test_delta_weights_and_gradients_are_those_of_the_equation(bases, variant: str) -> None:
    """In float64, through a model with the whole weights; after some steps, so that nothing is 0."""
    by_hand, settings = BY_HAND[variant]
    trial = Trial(load(bases, "bert"), "auto", variant=variant, set=settings)
    plain = load(bases, "bert")
    optimizer = trial.optimizer(torch.optim.AdamW)
    for _ in range(4):
        trial.step(optimizer)
    fold, p = trial.folded(), trial.parametrization
    parameters = [parameter for _, parameter in trial.trained()]
    optimizer.zero_grad()
    trial.backward()
    found = [parameter.grad.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    whole = plain.double()
    sites = [
        SimpleNamespace(name=s.name, d_out=s.d_out, d_in=s.d_in, weight=_weight(plain, s.name)) for s in trial.sites
    ]
    weights = {}
    for k, site in enumerate(sites):
        delta = by_hand(p, k, site)
        close(fold.delta(site.name).double(), delta)
        assert float(delta.detach().abs().max()) > 1e-3
        weights[f"{site.name}.weight"] = whole.get_submodule(site.name).weight + delta
    loss(lambda **inputs: torch.func.functional_call(whole, weights, (), inputs)).backward()
    for parameter, gradient in zip(parameters, found, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-4)
        assert bool(gradient.any())


def _weight(model: nn.Module, name: str) -> Callable[[], Tensor]:
    return lambda: model.get_submodule(name).weight.detach()


@pytest.mark.parametrize(("trains", "moves"), [("pair", {"A", "B"}), ("vectors", {"u", "v"}), ("all", set("ABuv"))])
def test_tied_lora_trains_what_it_is_asked_to(bases, trains: str, moves: set[str]) -> None:
    trial = Trial(load(bases, "llama"), "all-linear", variant="tied-lora", set=(f"trains={trains}",))
    p: Any = trial.parametrization
    begun = {part: [one.detach().clone() for one in getattr(p, part)] for part in "ABuv"}
    shapes = {(site.d_out, site.d_in) for site in trial.sites}
    assert len(p.A) == len(shapes) < len(trial.sites) == len(p.u)
    optimizer = trial.optimizer(torch.optim.AdamW)
    for _ in range(3):
        trial.step(optimizer)
    moved = {
        part for part in "ABuv" if not all(map(torch.equal, begun[part], (one.detach() for one in getattr(p, part))))
    }
    assert moved == moves
    counted = chosen_methods(trial.config).variant.trained(trial.sites, R)
    assert counted == sum(parameter.numel() for _, parameter in trial.trained())


# ---------------------------------------------------------------------------------------------- how factors begin


def test_asymmetric_rows_are_orthonormal_or_singular(bases) -> None:
    for rows in ("random", "singular"):
        settings = {"set": (f"rows={rows}",), "strategy": "inclora"}
        trial = Trial(load(bases, "bert"), "auto", variant="asymmetric", **settings)
        for site in trial.sites:
            A = trial.attached.layers[site.name].lora_A.detach().double()
            torch.testing.assert_close(A @ A.mT, torch.eye(R).double(), atol=1e-5, rtol=0)
            V = torch.linalg.svd(_weight(load(bases, "bert"), site.name)().double()).Vh[:R]
            inside = float((A @ V.mT).square().sum()) / R
            assert (inside > 0.9999) == (rows == "singular")


def test_components_of_lora_xs_do_not_meet(bases) -> None:
    """Those of three tasks: the rows of A are orthogonal, so that olora takes it."""
    model, found = load(bases, "bert"), []
    variant = chosen_methods(TrainConfig(variant="lora-xs", set=("lora-xs.components=next",), r=R)).variant
    trial = Trial(model, "auto", variant="lora")
    sites = Trial(load(bases, "bert"), "auto", variant="lora-xs").sites
    for number in range(3):
        context: Any = SimpleNamespace(
            sites=trial.sites, config=trial.config, scaling=S, number=number, targets=[site.name for site in sites]
        )
        found.append(variant.parametrize(context, None).factors().A)
    for site in trial.sites:
        A = torch.cat([factors[site.name] for factors in found])
        gram = A @ A.mT
        torch.testing.assert_close(gram, gram.diag().diag(), atol=1e-4, rtol=0)
        assert bool((gram.diag() > 0).all())


def test_two_tasks_of_vera_have_pairs_of_their_own(bases) -> None:
    """Of two draws of the generator, as two tasks make them: PEFT's one key would give the same rows twice."""
    one, two = (Trial(load(bases, "bert"), "auto", variant="vera").parametrization for _ in range(2))
    assert torch.equal(one.A, two.A)  # a trial sets the seed
    other = chosen_methods(TrainConfig(variant="vera", r=R)).variant.parametrize(
        Trial(load(bases, "bert"), "auto").context, None
    )
    assert not torch.equal(one.A, other.A)


def test_tensor_trains_have_no_higher_rank_than_their_own(bases) -> None:
    trial = Trial(load(bases, "bert"), "auto", variant="loretta", set=("tensor_rank=2",))
    optimizer = trial.optimizer(torch.optim.AdamW)
    for _ in range(4):
        trial.step(optimizer)
    fold = trial.folded()
    for site in trial.sites:
        values = torch.linalg.svdvals(fold.delta(site.name).double())
        assert float(values[2] / values[0]) < 1e-5 < float(values[1] / values[0])


@pytest.mark.parametrize(
    ("d", "modes", "sizes"),
    [
        (768, 3, [8, 8, 12]),
        (384, 3, [6, 8, 8]),
        (32, 3, [2, 4, 4]),
        (31, 3, [1, 1, 31]),
        (1536, 2, [32, 48]),
        (1, 1, [1]),
    ],
)
def test_a_size_is_split_into_factors_of_about_one_size(d: int, modes: int, sizes: list[int]) -> None:
    assert mode_sizes(d, modes) == sizes
    assert math.prod(sizes) == d


def test_an_entry_of_a_tensor_train_has_the_variance_of_its_size(bases) -> None:
    """``1 / (d + r)``, over many draws."""
    variant = VARIANTS.load("loretta")()
    from lorabank.training.variants.loretta import _cores

    torch.manual_seed(0)
    entries = []
    for _ in range(400):
        cores = [core.detach() for core in _cores(variant.shapes(8, 24), 32, torch.device("cpu"))]
        entries.append(torch.einsum("xra,aib,bjc,cky->rijk", *cores).flatten())
    assert float(torch.cat(entries).var()) == pytest.approx(1 / 32, rel=0.1)


# ------------------------------------------------------------------------------------- learning rates and refusals


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_has_its_own_learning_rate_where_none_is_given(variant: str) -> None:
    own = VARIANTS.load(variant).learning_rate
    assert learning_rate(TrainConfig(variant=variant)) == (LEARNING_RATE if own is None else own)
    assert learning_rate(TrainConfig(variant=variant, learning_rate=3e-5)) == 3e-5
    assert filled_in(TrainConfig(variant=variant)).learning_rate == learning_rate(TrainConfig(variant=variant))


def test_the_rates_that_were_measured_or_published_are_the_defaults() -> None:
    rates = {
        "lora": 1e-3,
        "lora-plus": 1e-3,
        "dora": 1e-3,
        "lora-fa": 4e-3,
        "asymmetric": 2e-3,
        "vera": 1e-2,
        "nola": 5e-3,
    }
    assert {variant: learning_rate(TrainConfig(variant=variant)) for variant in rates} == rates


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"variant": "melora", "set": ("minis=4",)}, "a rank of 3 cannot be divided among 4 small LoRAs"),
        ({"variant": "melora", "r": 8, "set": ("minis=5",)}, r"has 32 inputs and 32 outputs, not multiples of 5"),
        ({"variant": "vb-lora", "set": ("vector_length=12",)}, "has 32 inputs and 32 outputs, not multiples of 12"),
        ({"variant": "vb-lora", "set": ("topk=9", "num_vectors=8")}, "a part cannot mix 9 of 8 vectors"),
        ({"variant": "lora-xs", "r": 33}, "has 32 singular values, and lora-xs needs those from 1 to 33"),
        ({"variant": "trilora", "r": 33}, "has only 32 singular values, and the variant needs 33"),
        ({"variant": "asymmetric", "r": 33}, "has 32 inputs, and the variant needs 33"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(bases, config: dict[str, Any], why: str) -> None:
    model = load(bases, "bert")
    with pytest.raises(ConfigError, match=why) as caught:
        Trial(model, "auto", **config)
    assert caught.value.unchanged == "nothing was changed"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"variant": "lora-xs"}, "keeps A apart from the rows of earlier tasks"),
        ({"variant": "lora-xs", "strategy": "olora-projected"}, "keeps A apart from the rows of earlier tasks"),
        ({"variant": "lora-xs", "strategy": "inclora", "penalty": "frobenius"}, "keeps A apart from the rows"),
        ({"variant": "asymmetric", "set": ("rows=singular",)}, "keeps A apart from the rows of earlier tasks"),
        ({"variant": "vb-lora", "strategy": "inflora"}, "which the variant's part reads too"),
        ({"variant": "vb-lora", "strategy": "amlora"}, "what the variant takes out of the weight"),
        ({"variant": "vera", "start": "pissa"}, "the variant makes all factors itself"),
        ({"variant": "nola", "start": "pissa"}, "takes no start that is taken out of the weight"),
        ({"variant": "lora-fa", "strategy": "seqlora"}, "and the bank has only its A and B"),
        (
            {"variant": "lora-fa", "strategy": "olora-projected", "set": ("projected=true",)},
            "gives the layers another A",
        ),
    ],
)
def test_what_would_break_a_promise_is_refused(config: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        chosen_methods(TrainConfig(**config))


@pytest.mark.parametrize(
    "config",
    [
        {"variant": "lora-xs", "set": ("lora-xs.components=next",)},
        {"variant": "lora-xs", "penalty": "none"},
        {"variant": "lora-xs", "strategy": "nlora"},
        {"variant": "lora-fa", "strategy": "inflora", "set": ("projected=false",)},
        {"variant": "vera", "strategy": "olora-projected"},
    ],
)
def test_what_breaks_none_is_taken(config: dict[str, Any]) -> None:
    chosen_methods(TrainConfig(**config))
