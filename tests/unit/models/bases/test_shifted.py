"""A change of the weight in HQQ's zero points: the same codes, and nothing is rounded to few bits again."""

from __future__ import annotations

import re

import pytest
import torch

from lorabank.core.errors import IncompatibleError
from lorabank.models.bases.quantised.recipe import read_recipe
from lorabank.workflows.carrying.merged import constant_within


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize(("own", "group"), [(32, 32), (32, 64), (32, 128), (64, 32), (64, 16), (128, 1)])
def test_the_change_is_added_exactly(bits: int, own: int, group: int) -> None:
    """Within what float32 keeps of zero points, of which the largest here are some hundreds: 1e-6 of the weights."""
    quantiser = read_recipe(f"hqq:bits={bits},group_size={own}").quantiser
    weight, delta = random(24, 128), 0.3 * random(24, 128 // group, seed=1)
    kept = quantiser.quantise(weight)
    shifted = quantiser.shifted(kept, delta.double(), group)
    before, after = (quantiser.dequantise(one, (24, 128), torch.float32).double() for one in (kept, shifted))
    expected = before + delta.double().repeat_interleave(group, 1)
    assert (after - expected).abs().max() < 1e-6 * expected.abs().max()
    assert torch.equal(shifted["codes"], kept["codes"])
    times = max(1, own // group)
    assert torch.equal(shifted["steps"], kept["steps"].repeat_interleave(times))
    assert shifted["zeros"].dtype == kept["zeros"].dtype


def test_equal_weights_take_a_change_too() -> None:
    """Their step is the largest of the matrix, as it is for every group without a range."""
    quantiser = read_recipe("hqq:group_size=32").quantiser
    weight = torch.cat([random(2, 64), torch.full((1, 64), 0.25)])
    delta = random(3, 2, seed=1).double()
    kept = quantiser.quantise(weight)
    before, after = (
        quantiser.dequantise(one, (3, 64), torch.float32).double()
        for one in (kept, quantiser.shifted(kept, delta, 32))
    )
    expected = before + delta.repeat_interleave(32, 1)
    assert (after - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize(
    ("d_in", "own", "group", "fitting"),
    [(96, 64, 96, 32), (96, 64, 24, 32), (192, 64, 48, 64), (384, 256, 1, 128), (640, 64, 80, 64), (80, 64, 16, None)],
)
def test_other_groups_are_refused_with_what_fits(d_in: int, own: int, group: int, fitting: int | None) -> None:
    """The group of the hint fits the zero points of the bank that it names, where there is such a size."""
    quantiser = read_recipe(f"hqq:group_size={own},bits=2").quantiser
    with pytest.raises(IncompatibleError, match="one size must be a multiple of the other") as caught:
        quantiser.shifted(quantiser.quantise(random(4, d_in)), random(4, d_in // group).double(), group)
    hint = str(caught.value.hint)
    assert hint.endswith("export without --merged")
    found = re.search(r"--set group=(\d+)(?: in a bank of init --quantise (\S+),)?", hint)
    if fitting is None:
        assert found is None
        return
    assert found is not None
    assert int(found[1]) == fitting
    recipe = found[2] or f"hqq:bits=2,group_size={own}"
    assert recipe == f"hqq:bits=2,group_size={own if d_in % own == 0 else fitting}"
    other = read_recipe(recipe).quantiser
    other.shifted(other.quantise(random(4, d_in)), random(4, d_in // fitting).double(), fitting)


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_a_quantiser_without_zero_points_refuses(name: str) -> None:
    quantiser = read_recipe(name).quantiser
    with pytest.raises(IncompatibleError, match="keeps no zero points") as caught:
        quantiser.shifted(quantiser.quantise(random(4, 64)), random(4, 2).double(), 32)
    assert "\n" not in str(caught.value)


def test_groups_are_found_in_the_factor() -> None:
    A = random(3, 6)
    for times in (1, 4, 32):
        assert constant_within(A.repeat_interleave(times, 1)) == times
    odd = A.repeat_interleave(4, 1)
    odd[:, 2] += 1
    assert constant_within(odd) == 1
    assert constant_within(torch.ones(2, 12)) == 12
