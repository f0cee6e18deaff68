"""One node of the graph against the same layer written out for autograd."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorabank.training.layers.kernel import keep_mask, lora_linear

D_IN, D_OUT, RANK, SCALE = 40, 24, 4, 1.7
SHAPES = [(D_IN,), (9, D_IN), (3, 5, D_IN), (2, 3, 2, D_IN)]


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, p: float) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    dropped = x * keep_mask(rows, p).reshape(x.shape) / (1 - round(2**16 * p) / 2**16) if p else x
    thin = F.linear(dropped.to(A.dtype), A)
    out = F.linear(x, weight, bias)
    return out + (scale * F.linear(thin, B)).to(out.dtype)


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
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.dtype)
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
def test_under_autocast_it_is_the_plain_layer_under_autocast(p: float) -> None:
    """Both round in bfloat16, whose unit is 2^-8, though not after the same steps; the factors stay float32."""

    def mixed(form):
        def call(*args):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return form(*args)

        return call

    given = inputs(16, 4, D_IN)
    found, found_grads = run(mixed(lora_linear), given, p)
    expected, expected_grads = run(mixed(reference), given, p)
    exact, exact_grads = run(reference, given, p)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert_close(found, expected, 2**-7)
    assert_close(found.float(), exact, 2**-7)
    for name in ("x", "A", "B"):
        assert_close(found_grads[name], expected_grads[name], 2**-7)
        assert_close(found_grads[name], exact_grads[name], 2**-7)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_bfloat16_weight_leaves_the_adapter_in_float32(p: float) -> None:
    x, weight, bias, A, B = inputs(16, 4, D_IN)
    given = x.detach().bfloat16().requires_grad_(), weight.bfloat16(), bias.bfloat16(), A, B
    found, found_grads = run(lora_linear, given, p)
    expected, expected_grads = run(reference, given, p)
    assert_close(found, expected, 2**-8)
    assert_close(found_grads["x"], expected_grads["x"], 2**-8)
    for name in ("A", "B"):
        assert_close(found_grads[name], expected_grads[name], 5e-3 if p else 1e-6)  # the plain form rounds x / (1 - p)


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
