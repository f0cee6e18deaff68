"""Parameters in one block: the parameters are what they were, and the block is `torch.stack` of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorabank.training.loop.shared_block import Arena


def three() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(2, 5, generator=generator)) for _ in range(3)]


def copies(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(one.detach().clone()) for one in parameters]


def weighted(block: torch.Tensor) -> torch.Tensor:
    return (block * torch.arange(30.0).reshape(3, 2, 5)).square().sum()


def test_values_and_gradients_are_those_of_a_stack() -> None:
    parameters = three()
    alone = copies(parameters)
    arena = Arena(parameters)
    for _ in range(2):  # gradients add up
        found, expected = arena.joined(), torch.stack(alone)
        assert torch.equal(found, expected)
        for form, of in ((found, parameters), (expected, alone)):
            (weighted(form) + sum((k + 1) * one.sum() for k, one in enumerate(of))).backward()
    for one, other in zip(parameters, alone, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_training_is_that_of_parameters_on_their_own() -> None:
    parameters = three()
    alone = copies(parameters)
    arena = Arena(parameters)
    ours, theirs = (torch.optim.AdamW(of, lr=0.1, fused=True) for of in (parameters, alone))
    for _ in range(4):
        for optimizer, form in ((ours, arena.joined()), (theirs, torch.stack(alone))):
            optimizer.zero_grad()
            weighted(form).backward()
            optimizer.step()
        assert torch.equal(arena.joined(), torch.stack(alone))


def test_no_copy_is_made() -> None:
    parameters = three()
    block = Arena(parameters).joined()
    assert [one.data_ptr() for one in parameters] == [part.data_ptr() for part in block]


def test_a_parameter_that_was_given_other_data_is_taken_in_again() -> None:
    parameters = three()
    arena = Arena(parameters)
    parameters[1].data = torch.full((2, 5), 7.0)
    assert torch.equal(arena.joined()[1], torch.full((2, 5), 7.0))
    parameters[1].data.fill_(8.0)
    assert torch.equal(arena.joined()[1], torch.full((2, 5), 8.0))


@pytest.mark.parametrize("fixed", [{1}, {0, 1, 2}])
def test_a_fixed_parameter_gets_no_gradient(fixed: set[int]) -> None:
    parameters = three()
    for k in fixed:
        parameters[k].requires_grad_(False)
    block = Arena(parameters).joined()
    assert block.requires_grad == (len(fixed) < 3)
    if block.requires_grad:
        weighted(block).backward()
    assert {k for k, one in enumerate(parameters) if one.grad is None} == fixed
