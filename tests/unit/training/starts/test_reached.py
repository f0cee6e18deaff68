"""Starts where a site sees a part of the inputs, or none: groups of a convolution, experts of a mixture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorabank.core.config import TrainConfig
from lorabank.core.errors import DivergedError
from lorabank.models.bases.sites import site_of
from lorabank.training.context import TrainContext
from lorabank.training.methods import chosen_methods
from lorabank.training.starts.eva import _directions
from lorabank.training.strategies.inflora import INFLORA
from tests.unit.models.bases.test_experts import make, names

S = 2.0
IDS = torch.arange(40).view(5, 8) * 7 % 11
GROUPS = ("conv.0", "conv.1")


class Convolved(nn.Module):
    """A convolution of two groups, 6 channels to 8."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.table, self.conv = nn.Embedding(11, 6), nn.Conv1d(6, 8, 3, groups=2)

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(loss=self.conv(self.table(input_ids).mT).tanh().square().sum())


def context_of(model: Any, targets: Any, ids: Tensor, **config: Any) -> TrainContext:
    settings = TrainConfig(**({"r": 1, "lora_alpha": S, "batch_size": 8, "lora_dropout": 0.0} | config))
    loss = (lambda m, b: m(**b).loss) if isinstance(model, Convolved) else (lambda m, b: m(**b).logits.square().mean())
    rest: Any = dict(number=0, earlier=None, initial=None, objects={}, mean=None, rows=len(ids), loss=loss)
    rest |= dict(inputs=lambda rows, head=None: {"input_ids": ids[list(rows)]}, batches=lambda: [{"input_ids": ids}])
    return TrainContext(model, [site_of(model, name) for name in targets], settings, **rest)


def begun(context: TrainContext) -> Any:
    torch.manual_seed(1)
    return chosen_methods(context.config).start.begin(context)


# -------------------------------------------------------------------------------------------- groups of a convolution


def windows(model: Convolved, group: int) -> Tensor:
    """What a group reads, ``[windows, 3 channels * 3]`` float64."""
    return model.table(IDS).double().detach()[..., 3 * group : 3 * group + 3].unfold(1, 3, 1).reshape(-1, 9)


def test_eva_of_a_group_are_the_directions_of_its_own_channels() -> None:
    model = Convolved()
    found = begun(context_of(model, GROUPS, IDS, start="eva", r=2, set=("rho=1",)))
    for group, name in enumerate(GROUPS):
        expected = torch.linalg.svd(windows(model, group), full_matrices=False)[2][:2]
        torch.testing.assert_close((found.A[name].double() * expected).sum(1).abs(), torch.ones(2).double())


def test_corda_of_a_group_takes_out_what_its_own_channels_use_most() -> None:
    model = Convolved()
    found = begun(context_of(model, GROUPS, IDS, start="corda"))
    for group, name in enumerate(GROUPS):
        W, X = model.conv.weight[4 * group : 4 * group + 4].double().flatten(1).detach(), windows(model, group)
        C = X.mT @ X
        C = C / C.diagonal().mean() + 0.01 * torch.eye(9).double()
        left = torch.linalg.svdvals((W - S * found.B[name].double() @ found.A[name].double()) @ C)
        torch.testing.assert_close(left[:3], torch.linalg.svdvals(W @ C)[1:], atol=1e-4, rtol=1e-4)


def test_lora_ga_of_a_group_begins_along_its_own_gradient() -> None:
    model = Convolved()
    found = begun(context_of(model, GROUPS, IDS, start="lora-ga", set=("scale=unit",)))
    (gradient,) = torch.autograd.grad(model(IDS).loss, [model.conv.weight])
    for group, name in enumerate(GROUPS):
        U, _, V = torch.linalg.svd(gradient[4 * group : 4 * group + 4].flatten(1), full_matrices=False)
        assert float((found.A[name] @ V[0]).abs()) == pytest.approx(1, abs=1e-4)
        assert float((U[:, 1] @ found.B[name]).abs()) == pytest.approx(1, abs=1e-4)


# ------------------------------------------------------------------------------------------------------------ experts


def of_one_token(**config: Any) -> tuple[TrainContext, dict[str, Tensor]]:
    """A mixture of 3 experts that gets one token, which goes to two of them, and the experts' gradients of it."""
    ids, chosen = torch.tensor([[5]]), names("mixtral")
    plain = make("mixtral", unrolled=False)
    stacked = {name.rpartition(".")[0] for name in chosen}
    weights = {name: plain.get_parameter(name).requires_grad_() for name in stacked}
    plain(input_ids=ids).logits.square().mean().backward()
    gradients = {name: weights[name.rpartition(".")[0]].grad[int(name.rpartition(".")[2])] for name in chosen}
    return context_of(make("mixtral", unrolled=True), chosen, ids, **config), gradients


@pytest.mark.parametrize("start", ["eva", "corda", "lora-ga"])
def test_an_expert_without_a_token_begins_as_kaiming(start: str) -> None:
    context, gradients = of_one_token(start=start)
    found = begun(context)
    idle = [name for name, gradient in gradients.items() if not gradient.any()]
    assert len(idle) == len(gradients) / 3
    for name, gradient in gradients.items():
        A, B = found.A[name], found.B[name]
        if name in idle:
            assert bool(A.any())
            assert float(A.abs().max()) <= A.shape[1] ** -0.5
            assert not B.any()
        else:  # of one token C and the gradient have one direction: the input
            x = torch.linalg.svd(gradient)[2][0]
            if start != "corda":
                assert float((A @ x).abs() / A.norm()) == pytest.approx(1, abs=1e-3)
            assert bool(B.any()) == (start != "eva")


def test_inflora_leaves_an_expert_without_a_token_as_it_was() -> None:
    context, gradients = of_one_token()
    methods = chosen_methods(context.config)
    torch.manual_seed(1)
    parametrization = methods.variant.parametrize(context, methods.start)
    drawn = {name: A.detach().clone() for name, A in parametrization.factors().A.items()}
    fixed = INFLORA.attach(context, parametrization).parametrization.factors().A
    assert all(torch.equal(fixed[name], drawn[name]) == (not gradients[name].any()) for name in drawn)


# -------------------------------------------------------------------------------------------------------------- broken


@pytest.mark.parametrize("start", ["corda", "eva"])
def test_inputs_that_are_not_finite_are_refused(start: str) -> None:
    model = Convolved()
    with torch.no_grad():
        model.table.weight[3, 1] = torch.inf
    with pytest.raises(DivergedError, match=r"into conv\.0 is not finite"):
        begun(context_of(model, GROUPS, IDS, start=start))


def test_no_more_directions_are_kept_than_are_wanted() -> None:
    shares, rows = _directions(torch.eye(300), 4)
    assert rows.shape == (4, 300)
    assert max(one.untyped_storage().nbytes() for one in (shares, rows)) <= 4 * 300 * 8
