"""One node of the graph against the same layer written out for autograd."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorabank.training.kernels.lora import lora_linear
from lorabank.training.kernels.low_rank import keep_mask

D_IN, D_OUT, RANK, SCALE = 40, 24, 4, 1.7
SHAPES = [(D_IN,), (9, D_IN), (3, 5, D_IN), (2, 3, 2, D_IN)]


def mask_of(x: Tensor, p: float, *, typed: bool) -> Tensor:
    """The mask that one seed draws: our words for float32, torch's dropout for 16 bits."""
    rows = x.detach().reshape(-1, x.shape[-1])
    drawn = torch.native_dropout(rows.bfloat16(), p, True)[1] if typed else keep_mask(rows, p)
    return drawn.reshape(x.shape)


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float,
    p: float,
    *,
    typed: bool = False,
) -> Tensor:
    p = round(2**16 * p) / 2**16
    dropped = x * mask_of(x, p, typed=typed) / (1 - p) if p else x
    out = F.linear(x, weight, bias)
    return out + scale * F.linear(F.linear(dropped, A.to(x.dtype)), B.to(x.dtype)).to(out.dtype)


def inputs(*shape: int, bias: bool = True, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    x, A, B = (t.requires_grad_() for t in (normal(*shape), normal(RANK, D_IN), normal(D_OUT, RANK)))
    return x, normal(D_OUT, D_IN), normal(D_OUT) if bias else None, A, B


def run(form, given, p: float = 0.0) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Output and gradients under one seed and one upstream gradient, and the generator's state after the pass."""
    leaves = [t if t is None else t.detach().clone().requires_grad_(t.requires_grad) for t in given]
    torch.manual_seed(7)
    out = form(*leaves, SCALE, p)
    after = torch.get_rng_state()
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).bfloat16().to(out.dtype)
    (out * slope).sum().backward()
    names = ("x", "weight", "bias", "A", "B")
    grads = {name: None if leaf is None else leaf.grad for name, leaf in zip(names, leaves, strict=True)}
    return out.detach(), {**grads, "generator": after}


def assert_close(found: Tensor, expected: Tensor, relative: float) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    error = torch.linalg.vector_norm((found.double() - expected.double()).flatten())
    assert float(error) <= relative * float(torch.linalg.vector_norm(expected.double().flatten()))


@pytest.mark.parametrize(("shape", "bias", "p"), list(itertools.product(SHAPES, [True, False], [0.0, 0.3])))
def test_output_and_gradients_are_those_of_autograd(shape, bias: bool, p: float) -> None:
    given = inputs(*shape, bias=bias)
    found, found_grads = run(lora_linear, given, p)
    expected, expected_grads = run(reference, given, p)
    assert_close(found, expected, 1e-6)
    for name in ("x", "A", "B"):
        assert_close(found_grads[name], expected_grads[name], 1e-6)
    # one draw, so what is drawn next is the same too
    assert torch.equal(found_grads["generator"], expected_grads["generator"])


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradients_equal_finite_differences(p: float) -> None:
    x, weight, bias, A, B = (None if t is None else t.detach().double() for t in inputs(3, 2, D_IN))

    def form(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        torch.manual_seed(5)
        return lora_linear(x, weight, bias, A, B, SCALE, p)

    assert torch.autograd.gradcheck(form, [t.requires_grad_() for t in (x, A, B)])


@pytest.mark.parametrize("wanted", [w for w in itertools.product([True, False], repeat=3) if any(w)])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_each_gradient_comes_with_or_without_the_others(wanted, p: float) -> None:
    """The first layer's input asks for none, a method that fixes A trains B alone."""
    given = inputs(4, 3, D_IN)
    for tensor, wants in zip((given[0], given[3], given[4]), wanted, strict=True):
        tensor.requires_grad_(wants)
    _, found = run(lora_linear, given, p)
    _, expected = run(reference, given, p)
    for name, wants in zip(("x", "A", "B"), wanted, strict=True):
        assert (found[name] is not None) == wants
        if wants:
            assert_close(found[name], expected[name], 1e-6)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("autocast", [True, False])
def test_in_bfloat16_it_is_the_plain_layer_in_bfloat16(p: float, autocast: bool) -> None:
    """Under autocast and on a bfloat16 base: as near to the exact layer as autograd is; the factors stay float32."""

    def mixed(form):
        def call(*args):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                return form(*args)

        return call

    x, weight, bias, A, B = inputs(16, 4, D_IN)
    dtype = torch.float32 if autocast else torch.bfloat16
    given = x.detach().to(dtype).requires_grad_(), weight.to(dtype), bias.to(dtype), A, B
    plain = partial(reference, typed=True)
    found, found_grads = run(mixed(lora_linear), given, p)
    expected, expected_grads = run(mixed(plain), given, p)
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in given]
    exact, exact_grads = run(plain, wide, p)
    assert found.dtype == torch.bfloat16
    assert_as_near(found, expected, exact)
    for name in ("x", "A", "B"):
        assert_as_near(found_grads[name], expected_grads[name], exact_grads[name])
    assert found_grads["A"].dtype == found_grads["B"].dtype == torch.float32


def assert_as_near(found: Tensor, expected: Tensor, exact: Tensor) -> None:
    assert found.dtype == expected.dtype
    ours, theirs = (float((form.double() - exact).norm() / exact.norm()) for form in (found, expected))
    assert ours <= max(1.2 * theirs, 2**-8)


def test_shadows_of_the_factors_take_their_place_in_the_products_alone() -> None:
    x, weight, bias, A, B = inputs(16, 4, D_IN)
    given = x.detach().bfloat16().requires_grad_(), weight.bfloat16(), bias.bfloat16(), A, B
    shadow = A.detach().bfloat16(), B.detach().bfloat16()
    found = run(lambda *args: lora_linear(*args, shadow), given, 0.3)
    expected = run(lora_linear, given, 0.3)
    assert torch.equal(found[0], expected[0])
    for name in ("x", "A", "B"):
        assert torch.equal(found[1][name], expected[1][name])
    inputs32 = [t if t is None else t.detach() for t in inputs(16, 4, D_IN)]
    of_another = tuple(torch.full_like(t, 9) for t in shadow)  # the products of float32 take no notice of these
    assert torch.equal(lora_linear(*inputs32, SCALE, 0.0, of_another), lora_linear(*inputs32, SCALE, 0.0))


def test_an_input_that_is_no_block_of_memory() -> None:
    x, *rest = inputs(3, 5, D_IN)
    crossed = x.detach().transpose(0, 1).requires_grad_()
    torch.testing.assert_close(lora_linear(crossed, *rest, SCALE, 0.0), reference(crossed, *rest, SCALE, 0.0))


def test_it_keeps_the_input_and_what_is_thin() -> None:
    """Beside x itself and the parameters: h, and one byte an entry for the mask."""
    given = inputs(50, D_IN)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lora_linear(*given, SCALE, 0.3)
    own = {tensor.untyped_storage().data_ptr() for tensor in given if tensor is not None}
    extra = [t.nbytes for t in kept if t.untyped_storage().data_ptr() not in own]
    assert sorted(extra) == sorted([50 * D_IN, 4 * 50 * RANK])


def test_the_inputs_are_not_written_to() -> None:
    given = inputs(6, D_IN)
    before = [None if t is None else t.detach().clone() for t in given]
    lora_linear(*given, SCALE, 0.3).sum().backward()
    assert all(a is b is None or torch.equal(a.detach(), b) for a, b in zip(given, before, strict=True))


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.97])
def test_a_mask_drops_each_entry_for_itself_with_its_probability(p: float) -> None:
    torch.manual_seed(11)
    rows = torch.empty(501, 799)  # an odd number of entries
    kept = keep_mask(rows, p).flatten().double()
    assert set(kept.tolist()) == {0.0, 1.0}
    spread = (p * (1 - p)) ** 0.5

    def near(mean: Tensor, expected: float, sigma: float, count: int) -> bool:
        return abs(float(mean) - expected) < 5 * sigma / count**0.5

    assert near(kept.mean(), 1 - p, spread, len(kept))
    for part in range(4):  # four entries come from one word of the generator
        assert near(kept[part::4].mean(), 1 - p, spread, len(kept[part::4]))
    apart = kept - (1 - p)
    for lag in (1, 2, 3, 4, 799):
        assert near((apart[lag:] * apart[:-lag]).mean(), 0.0, spread**2, len(kept) - lag)


def test_a_seed_gives_one_mask_and_the_next_is_another() -> None:
    rows = torch.empty(40, 30)
    torch.manual_seed(1)
    first, second = keep_mask(rows, 0.5), keep_mask(rows, 0.5)
    torch.manual_seed(1)
    assert torch.equal(keep_mask(rows, 0.5), first)
    assert not torch.equal(first, second)


def test_a_dropout_next_to_one_stays_finite() -> None:
    torch.manual_seed(2)
    x, weight, bias, A, B = inputs(9, D_IN)
    out = lora_linear(x, weight, bias, A, B, SCALE, 1 - 1e-9)
    out.sum().backward()
    assert all(bool(torch.isfinite(t).all()) for t in (out, x.grad, A.grad, B.grad))
