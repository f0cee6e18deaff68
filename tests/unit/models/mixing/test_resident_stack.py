"""Adapters within a budget: the answers of all of them in memory, each read when needed, the oldest making room."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lorabank.algebra.factors import FactorShape, LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.errors import ConfigError
from lorabank.models.mixing.mixture import Mixture
from lorabank.models.mixing.resident_stack import ResidentStack
from lorabank.models.mixing.slot_filling import SlotFiller

SHAPES = {"0": (6, 8), "2": (5, 6)}
SLOT = 4 * (3 * (6 + 8) + 2 * (5 + 6))  # rank 3 on "0", rank 2 on "2", float32


@pytest.fixture
def adapters(make_adapter) -> dict[str, LoraFactors]:
    """Of several ranks and scalings; one leaves module ``2`` alone."""
    return {
        "a": make_adapter(SHAPES, 2, 1.0, seed=1),
        "b": make_adapter({"0": SHAPES["0"]}, 3, 2.0, rslora=True, seed=2),
        "c": make_adapter(SHAPES, 1, 0.7, seed=3),
        "d": make_adapter(SHAPES, 2, 5.0, seed=4),
    }


class Reader:
    """Gives adapters and keeps a list of what was asked for."""

    def __init__(self, adapters: dict[str, LoraFactors]) -> None:
        self.adapters = adapters
        self.asked: list[str] = []

    def __call__(self, name: str) -> LoraFactors:
        self.asked.append(name)
        return self.adapters[name]

    def stack(self, max_bytes: int | None, dtype: torch.dtype = torch.float32, device: str = "cpu") -> ResidentStack:
        shapes = {
            name: {
                module: FactorShape(*A.shape, factors.B[module].shape[0], factors.scaling[module])
                for module, A in factors.A.items()
            }
            for name, factors in self.adapters.items()
        }
        return ResidentStack.reserve(shapes, self, device=device, dtype=dtype, max_bytes=max_bytes)


@pytest.fixture
def reader(adapters) -> Reader:
    return Reader(adapters)


def delta(adapters: dict[str, LoraFactors], module: str, weights) -> torch.Tensor:
    """``sum_k w_k s_k B_k A_k`` of one module, adapter by adapter."""
    total = torch.zeros(SHAPES[module])
    for w, factors in zip(weights, adapters.values(), strict=True):
        if module in factors.A:
            total += float(w) * factors.scaling[module] * (factors.B[module] @ factors.A[module])
    return total


@pytest.mark.parametrize("budget", [None, 2 * SLOT])
def test_slots_hold_the_adapters_that_were_placed(adapters, reader, budget) -> None:
    stack = reader.stack(budget)
    for weights in ([0, 2.0, 0, 0], [1.0, 0, -0.5, 0], [0, 0, 0.3, 1.0], [0, 0, 0, 0], [0, 0.5, 0, 1.0]):
        placed = stack.place(torch.tensor(weights, dtype=torch.float32))
        for module in SHAPES:
            torch.testing.assert_close(stack.modules[module].delta(placed), delta(adapters, module, weights))


def test_nothing_is_read_before_it_is_needed_nor_twice(reader) -> None:
    stack = reader.stack(None)
    assert reader.asked == []
    stack.place(torch.tensor([[0, 0, 1.0, 0], [0, 0, 0, 0]]))
    assert reader.asked == ["c"]
    stack.place(torch.tensor([1.0, 0, 1.0, 0]))
    assert reader.asked == ["c", "a"]
    assert stack.moved == 0


def test_the_one_used_longest_ago_makes_room(reader) -> None:
    stack = reader.stack(2 * SLOT)
    for only in ("a", "b", "a", "c"):  # c takes the place of b
        stack.place(torch.tensor([float(name == only) for name in stack.names]))
    assert reader.asked == ["a", "b", "c"]
    assert stack.resident == ("a", "c")
    stack.place(torch.tensor([0, 1.0, 1.0, 0]))  # b again; c is needed with it and stays
    assert stack.resident == ("c", "b")
    assert stack.moved == 2


def test_a_slot_whose_filling_was_interrupted_is_the_next_one_filled(adapters, reader, monkeypatch) -> None:
    """No other adapter loses its slot to it, whichever slot that was."""
    stack = reader.stack(2 * SLOT)
    one = {name: torch.tensor([float(name == other) for other in stack.names]) for name in stack.names}
    stack.place(one["a"])
    stack.place(one["b"])
    with monkeypatch.context() as patched:
        patched.setattr(SlotFiller, "fill", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stack.place(one["c"])  # in the place of a
    for name in ("d", "b", "d"):
        placed = stack.place(one[name])
        for module in SHAPES:
            expected = delta(adapters, module, one[name])
            torch.testing.assert_close(stack.modules[module].delta(placed), expected)
    assert reader.asked == ["a", "b", "c", "d"]


def test_the_budget_is_kept(reader) -> None:
    for slots in (1, 2):
        stack = reader.stack(slots * SLOT + 1)
        assert sum(f.A.nbytes + f.B.nbytes for f in stack.modules.values()) == slots * SLOT
    whole = sum(4 * (A.numel() + f.B[m].numel()) for f in reader.adapters.values() for m, A in f.A.items())
    assert reader.stack(whole).all_fit
    assert not reader.stack(whole - 1).all_fit


def test_parts_add_up_to_a_state_of_more_adapters_than_fit(adapters, reader) -> None:
    weights = torch.tensor([1.0, -0.5, 2.0, 0.25])
    stack = reader.stack(SLOT)
    model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5))
    x = torch.randn(3, 8)
    expected = x
    for name, module in model.named_children():
        changed = delta(adapters, name, weights) if name in SHAPES else None
        expected = module(expected) if changed is None else F.linear(expected, module.weight + changed, module.bias)
    mixture = Mixture(model, stack.slots)
    mixture.merge_sum(stack.parts(weights))
    torch.testing.assert_close(model(x), expected)
    mixture.off()
    mixture.merge_sum(stack.parts(torch.zeros(4)))
    assert all(layer.form is None for layer in mixture._layers.values())


def test_waves_hold_every_row_once_and_their_adapters_fit(reader) -> None:
    stack = reader.stack(2 * SLOT)
    rows = np.array([[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]], np.float32)
    waves = stack.waves(rows)
    assert sorted(np.concatenate(waves).tolist()) == list(range(len(rows)))
    assert len(waves) == 2
    for wave in waves:
        assert (rows[wave] != 0).any(0).sum() <= 2
        stack.place(torch.from_numpy(rows[wave]))
    assert len(reader.asked) == 4  # each adapter once for all rows
    assert [wave.tolist() for wave in reader.stack(None).waves(rows)] == [list(range(6))]


def test_what_cannot_fit_says_how_much_it_needs(reader) -> None:
    with pytest.raises(ConfigError, match="an adapter needs"):
        reader.stack(SLOT - 1)
    stack = reader.stack(2 * SLOT)
    with pytest.raises(ConfigError, match="3 adapters that answer one text together need") as caught:
        stack.waves(np.array([[1, 1, 1, 0]], np.float32))
    assert caught.value.hint == "--max-resident 1MiB"
    with pytest.raises(ConfigError, match="4 adapters that answer together need"):
        reader.stack(SLOT).select(stack.names)


@pytest.mark.parametrize("budget", [None, 2 * SLOT])
def test_selected_and_combined_are_those_of_a_stack_in_memory(adapters, reader, budget) -> None:
    stack, whole = reader.stack(budget), AdapterStack.build(adapters)
    chosen, expected = stack.select(["d", "b"]), whole.select(["d", "b"])
    assert chosen.names == expected.names
    for module, factors in expected.modules.items():
        w = torch.tensor([1.0, -2.0])
        torch.testing.assert_close(chosen.modules[module].delta(w), factors.delta(w))
    weights = torch.tensor([0, 0.5, 0, -1.0])
    for module, A in stack.combine(weights).A.items():
        found = stack.combine(weights).B[module] @ A
        torch.testing.assert_close(found, delta(adapters, module, weights))


def test_a_read_that_fails_leaves_the_slots_as_they_were(adapters, reader, monkeypatch) -> None:
    stack = reader.stack(2 * SLOT)
    stack.place(torch.tensor([1.0, 1.0, 0, 0]))
    reader.adapters = {}
    with pytest.raises(KeyError):
        stack.place(torch.tensor([0, 0, 1.0, 0]))
    assert stack.resident == ("a", "b")
    placed = stack.place(torch.tensor([1.0, 3.0, 0, 0]))
    torch.testing.assert_close(stack.modules["0"].delta(placed), delta(adapters, "0", [1.0, 3.0, 0, 0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("budget", [None, 2 * SLOT])
def test_one_flat_copy_fills_a_slot_as_many_small_ones_do(adapters, reader, budget, dtype) -> None:
    """The way of a GPU, on a CPU: what a slot held before leaves nothing."""
    found, expected = (reader.stack(budget, dtype) for _ in range(2))
    found._filler = SlotFiller(found.slots, flat=True)
    expected._filler = SlotFiller(expected.slots, flat=False)
    for stack in (found, expected):
        for factors in stack.modules.values():
            factors.A.fill_(7)
            factors.B.fill_(7)
    for weights in ([1.0, 0, 1.0, 0], [0, 1.0, 0, 1.0], [0, 1.0, 1.0, 0], [1.0, 1.0, 0, 0]):
        for stack in (found, expected):
            stack.place(torch.tensor(weights))
        for module, factors in found.modules.items():
            assert torch.equal(factors.A, expected.modules[module].A)
            assert torch.equal(factors.B, expected.modules[module].B)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("budget", [None, SLOT])
def test_slots_of_a_gpu_hold_what_those_of_a_cpu_do(adapters, reader, budget) -> None:
    found, expected = reader.stack(budget, torch.bfloat16, "cuda"), reader.stack(budget, torch.bfloat16)
    for weights in ([1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 1.0, 0, 0]):
        for stack in (found, expected):
            stack.place(torch.tensor(weights))
        for module, factors in found.modules.items():
            assert torch.equal(factors.A.cpu(), expected.modules[module].A)
            assert torch.equal(factors.B.cpu(), expected.modules[module].B)
