"""Variants that freeze or share factors or make them as products: against PEFT's tuners, and float64 by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import peft
import peft.optimizers.lorafa
import pytest
import torch
from torch import Tensor, nn

from lorabank.core.config import LEARNING_RATE, TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.shelves import VARIANTS
from lorabank.training.methods import chosen_methods, filled_in, learning_rate
from lorabank.training.variants.base import Step
from lorabank.training.variants.loretta import mode_sizes
from tests.unit.training.variants.test_variants import ALPHA, IDS, Q_V, RATE, STEPS, R, Trial, close, load, loss

S = ALPHA / R


# --------------------------------------------------------------------------------------- PEFT's tuners as oracles


def wrapped(model: nn.Module, kind: str, config: Any) -> nn.Module:
    config.target_modules, config.fan_in_fan_out = set(Q_V[kind]), kind == "gpt2"
    return peft.get_peft_model(model, config).eval()


def steps_agree(
    trial: Trial, theirs: nn.Module, pairs: list[tuple[Tensor, Tensor]], less: Callable[[], None], rate: float = RATE
) -> None:
    """Ten steps of SGD: answers, the gradients of all pairs of parameters, and values at the end.

    Args:
        trial: Ours.
        theirs: PEFT's model, which begins where ours does.
        pairs: Parameters of ours and theirs.
        less: Called once before the first step.
        rate: Learning rate.
    """
    less()
    ours = trial.optimizer(torch.optim.SGD, rate)
    other = torch.optim.SGD([{"params": [peer], "lr": _rate(ours, own)} for own, peer in pairs], lr=rate)
    values = []
    for _ in range(STEPS):
        close(trial.model(input_ids=IDS).logits, theirs(input_ids=IDS).logits)
        ours.zero_grad()
        other.zero_grad()
        values.append(trial.backward().item())
        loss(theirs).backward()
        for own, peer in pairs:
            torch.testing.assert_close(own.grad, peer.grad.view_as(own), atol=1e-5, rtol=1e-4)
        ours.step()
        other.step()
        trial.live.refresh()
    assert values[-1] < values[0] - 1e-3  # it is worth comparing
    for own, peer in pairs:
        close(own, peer.view_as(own))


def _rate(optimizer: torch.optim.Optimizer, parameter: Tensor) -> float:
    return next(g["lr"] for g in optimizer.param_groups if any(parameter is one for one in g["params"]))


def peers(trial: Trial, theirs: nn.Module) -> list[nn.Module]:
    return [theirs.get_submodule(f"base_model.model.{name}") for name in trial.attached.layers]


def nothing() -> None:
    """Both begin at the base."""


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_vera_steps_as_in_peft(bases, kind: str) -> None:
    trial = Trial(load(bases, kind), ",".join(Q_V[kind]), variant="vera")
    theirs = wrapped(load(bases, kind), kind, peft.VeraConfig(r=R, d_initial=0.1, vera_dropout=0.0))
    p: Any = trial.parametrization
    with torch.no_grad():
        theirs.base_model.vera_A["default"].copy_(p.A)
        theirs.base_model.vera_B["default"].copy_(p.B)
    layers = peers(trial, theirs)
    pairs = [(d, peer.vera_lambda_d["default"]) for d, peer in zip(p.d, layers, strict=True)]
    pairs += [(b, peer.vera_lambda_b["default"]) for b, peer in zip(p.b, layers, strict=True)]
    steps_agree(trial, theirs, pairs, nothing, rate=2.0)


def test_vera_is_drawn_as_in_peft(bases) -> None:
    """The spread of both matrices, at a rank and size where it can be told."""
    trial = Trial(load(bases, "bert"), "all-linear", variant="vera")
    theirs = wrapped(load(bases, "bert"), "bert", peft.VeraConfig(r=R))
    p: Any = trial.parametrization
    assert p.A.shape == (R, 48)
    assert p.B.shape == (48, R)
    for ours, fan, peer in ((p.A, 48, theirs.base_model.vera_A), (p.B, R, theirs.base_model.vera_B)):
        assert 0.9 * math.sqrt(6 / fan) < float(ours.abs().max()) <= math.sqrt(6 / fan)
        assert float(peer["default"].abs().max()) <= math.sqrt(6 / (32 if fan == 48 else R))


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_vb_lora_steps_as_in_peft(bases, kind: str) -> None:
    """PEFT begins away from the base by its first product, which is taken out of its weights for this."""
    settings = ("num_vectors=6", "vector_length=8", "bound=0.5", "deviation=1.0", "ratio=3")
    trial = Trial(load(bases, kind), ",".join(Q_V[kind]), variant="vb-lora", set=settings)
    config = peft.VBLoRAConfig(r=R, num_vectors=6, vector_length=8, topk=2)
    theirs = wrapped(load(bases, kind), kind, config)
    p: Any = trial.parametrization
    layers, bank = peers(trial, theirs), theirs.base_model.vblora_vector_bank["default"]
    pairs = [(p.bank, bank)]
    pairs += [(own, peer.vblora_logits_A["default"]) for own, peer in zip(p.logits_A, layers, strict=True)]
    pairs += [(own, peer.vblora_logits_B["default"]) for own, peer in zip(p.logits_B, layers, strict=True)]

    @torch.no_grad()
    def begin() -> None:
        for own, peer in pairs:
            peer.copy_(own)
        for layer in layers:
            layer.base_layer.weight.sub_(layer.get_delta_weight("default"))

    steps_agree(trial, theirs, pairs, begin)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_trilora_steps_as_adalora_without_its_penalty(bases, kind: str) -> None:
    trial = Trial(load(bases, kind), ",".join(Q_V[kind]), variant="trilora")
    alpha = ALPHA * (1 + 1e-5 / R)  # PEFT divides by R + 1e-5
    config = peft.AdaLoraConfig(init_r=R, target_r=1, lora_alpha=alpha, lora_dropout=0.0, total_step=1000)
    theirs = wrapped(load(bases, kind), kind, config)
    p: Any = trial.parametrization
    pairs = []
    for k, peer in enumerate(peers(trial, theirs)):
        pairs += [(p.A[k], peer.lora_A["default"]), (p.B[k], peer.lora_B["default"]), (p.e[k], peer.lora_E["default"])]

    @torch.no_grad()
    def begin() -> None:
        for own, peer in pairs:
            peer.copy_(own.view_as(peer))

    steps_agree(trial, theirs, pairs, begin, rate=0.5)


def frozen_A(bases: dict[str, str], *settings: str) -> tuple[Trial, nn.Module]:
    """Ours, and PEFT's plain LoRA with the same A."""
    trial = Trial(load(bases, "llama"), "q_proj,v_proj", variant="lora-fa", set=settings)
    theirs = wrapped(load(bases, "llama"), "llama", peft.LoraConfig(r=R, lora_alpha=ALPHA))
    with torch.no_grad():
        for layer, peer in zip(trial.attached.layers.values(), peers(trial, theirs), strict=True):
            peer.lora_A["default"].weight.copy_(layer.lora_A)
            peer.lora_A["default"].weight.requires_grad_(False)
    return trial, theirs


def test_lora_fa_steps_as_lora_with_a_frozen_A(bases) -> None:
    trial, theirs = frozen_A(bases)
    layers = list(trial.attached.layers.values())
    A = [layer.lora_A.detach().clone() for layer in layers]
    pairs = [
        (b, peer.lora_B["default"].weight)
        for b, peer in zip(trial.parametrization.B, peers(trial, theirs), strict=True)
    ]
    steps_agree(trial, theirs, pairs, nothing)
    for begun, layer in zip(A, layers, strict=True):
        assert torch.equal(begun, layer.lora_A.detach())
        assert layer.lora_A.grad is None


def test_lora_fa_takes_the_gradient_that_pefts_optimizer_takes(bases, monkeypatch) -> None:
    """What enters its average in each of ten steps, in float32: PEFT computes it in bfloat16 wherever there is one."""
    monkeypatch.setattr(peft.optimizers.lorafa, "is_bf16_available", lambda: False)
    trial, theirs = frozen_A(bases, "projected=true")
    p: Any = trial.parametrization
    other: Any = peft.optimizers.lorafa.create_lorafa_optimizer(theirs, r=R, lora_alpha=ALPHA, lr=1e-2)
    names = [f"base_model.model.{name}.lora" for name in trial.attached.layers]
    before = [torch.zeros_like(b) for b in p.B]
    for number in range(1, STEPS + 1):
        other.zero_grad()
        for b in p.B:
            b.grad = None
        trial.backward()
        trial.parametrization.before_step(Step(number, STEPS))
        loss(theirs).backward()
        other.step()
        for k, (b, peer) in enumerate(zip(p.B, peers(trial, theirs), strict=True)):
            average = other.state[names[k]]["exp_avg_B"]
            taken = (average - 0.9 * before[k]) / 0.1
            scale = float(taken.abs().max())
            torch.testing.assert_close(b.grad / scale, taken / scale, atol=1e-4, rtol=1e-4)
            before[k] = average.clone()
            b.data.copy_(peer.lora_B["default"].weight)
        trial.live.refresh()


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
