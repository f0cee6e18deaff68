"""Stored answers and what is measured from them, against sums in float64."""

from __future__ import annotations

import math

import pytest
import torch

from lorabank.models.facts.answers import (
    answers_from_bytes,
    answers_to_bytes,
    divergence,
    joined,
    kept_answers,
    squared_distance,
)


def logits(n: int, choices: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(n, choices, generator=torch.Generator().manual_seed(seed))


def probabilities(row: list[float], kept: list[int]) -> list[float]:
    """Of the kept choices and of all others together."""
    every = [math.exp(value) for value in row]
    return [every[c] / sum(every) for c in kept] + [sum(e for c, e in enumerate(every) if c not in kept) / sum(every)]


@pytest.mark.parametrize("most", [1, 3, 6, 9])
def test_divergence_is_the_sum_over_kept_choices_and_the_rest(most: int) -> None:
    before, now = logits(5, 6, 1), logits(5, 6, 2)
    expected = []
    for old, new in zip(before.tolist(), now.tolist(), strict=True):
        kept = sorted(range(6), key=lambda c: -old[c])[:most]
        pairs = zip(probabilities(old, kept), probabilities(new, kept), strict=True)
        expected.append(sum(p * math.log(p / q) for p, q in pairs if p > 0))
    found = divergence(kept_answers(before, most), now)
    assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_with_all_choices_it_is_torchs_divergence_and_has_its_gradient() -> None:
    before, now = logits(4, 5, 3), logits(4, 5, 4).requires_grad_()
    divergence(kept_answers(before, 64), now).sum().backward()
    expected = (now.detach().double().softmax(-1) - before.double().softmax(-1)).float()
    torch.testing.assert_close(now.grad, expected, rtol=0, atol=1e-6)


def test_the_answers_themselves_are_at_no_distance() -> None:
    own = logits(4, 9, 5)
    for most in (2, 64):
        kept = kept_answers(own, most)
        assert divergence(kept, own).tolist() == pytest.approx([0.0] * 4, abs=1e-6)
        assert squared_distance(kept, own).tolist() == [0.0] * 4


def test_choices_that_a_head_does_not_have_do_not_count() -> None:
    """Of several heads the narrower ones are padded with -inf."""
    before, now = logits(3, 2, 6), logits(3, 2, 7)
    wide = torch.nn.functional.pad(now, (0, 3), value=-torch.inf).requires_grad_()
    kept = kept_answers(torch.nn.functional.pad(before, (0, 3), value=-torch.inf), 4)
    torch.testing.assert_close(divergence(kept, wide), divergence(kept_answers(before, 4), now))
    torch.testing.assert_close(squared_distance(kept, wide), squared_distance(kept_answers(before, 4), now))
    (divergence(kept, wide) + squared_distance(kept, wide)).sum().backward()
    assert bool(wide.grad.isfinite().all())


def test_the_squared_distance_is_a_mean_over_the_kept_logits() -> None:
    before, now = logits(3, 6, 8), logits(3, 6, 9)
    kept = [sorted(range(6), key=lambda c: -row[c])[:4] for row in before.tolist()]
    expected = [sum((float(now[i, c]) - float(before[i, c])) ** 2 for c in row) / 4 for i, row in enumerate(kept)]
    assert squared_distance(kept_answers(before, 4), now).tolist() == pytest.approx(expected, rel=1e-6)


def test_answers_of_several_heads_are_joined_and_stored() -> None:
    few, many, now = logits(2, 2, 10), logits(3, 7, 11), logits(5, 7, 12)
    both = joined([kept_answers(few, 5), kept_answers(many, 5)])
    stored, terms = answers_from_bytes(answers_to_bytes(both, torch.tensor([1, 1, 3])))
    assert terms.tolist() == [1, 1, 3]
    assert len(stored) == 5
    assert bool(stored.logits.isfinite().all() and stored.rest.isfinite().all())  # what the bank takes
    padded = now.clone()
    padded[:2, 2:] = -torch.inf
    parts = [divergence(kept_answers(few, 5), now[:2, :2]), divergence(kept_answers(many, 5), now[2:])]
    torch.testing.assert_close(divergence(stored, padded), torch.cat(parts))
    assert stored.at(torch.tensor([4, 0])).logits.tolist() == both.logits[[4, 0]].tolist()
