"""How tokens are drawn: against the definitions, in float64 and by counting."""

from __future__ import annotations

import math

import pytest
import torch

from lorabank.core.config import SamplingConfig
from lorabank.models.answering.sampling import Choice, drawn_tokens, penalised

LOGITS = torch.tensor([[2.0, -1.0, 0.5, 3.0, -4.0]], dtype=torch.float64)


def chosen(settings: list[SamplingConfig], scores: torch.Tensor, ids: list[list[int]], before: list[int]) -> list[int]:
    return Choice(settings, before)(torch.tensor(ids), scores).argmax(-1).tolist()


def nucleus(logits: torch.Tensor, top_p: float) -> dict[int, float]:
    """Token to probability within the nucleus, by hand."""
    weights = [math.exp(value) for value in logits.tolist()]
    shares = [(weight / sum(weights), token) for token, weight in enumerate(weights)]
    kept, total = {}, 0.0
    for share, token in sorted(shares, reverse=True):
        if total >= top_p:
            break
        kept[token] = share
        total += share
    return {token: share / total for token, share in kept.items()}


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.72, 0.95, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_every_point_lies_in_the_part_of_its_token(top_p: float, temperature: float) -> None:
    """The part of [0, 1) that gives a token is as long as its probability within the nucleus."""
    expected = nucleus(LOGITS[0] / temperature, top_p)
    points = torch.arange(20_000, dtype=torch.float64)[:, None] / 20_000
    rows = (LOGITS / temperature).expand(len(points), -1)
    tokens = drawn_tokens(rows, torch.full_like(points, top_p), points)
    counts = torch.bincount(tokens, minlength=5) / len(points)
    for token in range(5):
        share = expected.get(token, 0.0)
        assert counts[token].item() == pytest.approx(share, abs=2 / 20_000)  # one point at each edge


def test_greedy_rows_are_left_as_they_are_beside_rows_that_draw() -> None:
    scores = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    settings = [SamplingConfig(), SamplingConfig(temperature=1.0, seed=3), SamplingConfig()]
    found = Choice(settings, [0, 0, 0])(torch.zeros(3, 2, dtype=torch.long), scores)
    assert torch.equal(found[[0, 2]], scores[[0, 2]])
    assert found[1].isfinite().sum() == 1


def test_a_row_draws_the_same_whatever_rows_are_beside_it() -> None:
    generator = torch.Generator().manual_seed(1)
    steps = torch.randn(6, 4, 50, generator=generator)
    settings = [SamplingConfig(temperature=0.7 + 0.2 * i, top_p=0.9, seed=i) for i in range(4)]
    together = Choice(settings, [0] * 4)
    alone = [Choice([one], [0]) for one in settings]
    ids = torch.zeros(4, 1, dtype=torch.long)
    for scores in steps:
        found = together(ids, scores).argmax(-1)
        assert found.tolist() == [int(alone[i](ids[:1], scores[i : i + 1]).argmax()) for i in range(4)]


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    scores = torch.zeros(1, 1000)
    ids = [[0]]
    first = [chosen([SamplingConfig(temperature=1.0, seed=5)], scores, ids, [0]) for _ in range(2)]
    assert first[0] == first[1]
    assert chosen([SamplingConfig(temperature=1.0, seed=6)], scores, ids, [0]) != first[0]


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-40, 1e-9])
def test_next_to_no_temperature_takes_the_likeliest_token(temperature: float) -> None:
    settings = [SamplingConfig(temperature=temperature, top_p=0.9, seed=seed) for seed in range(3)]
    scores = torch.tensor([[2.0, 9e4, -torch.inf], [-3e38, -1e38, -2e38], [1.0, -2.0, 0.5]])
    assert chosen(settings, scores, [[0]] * 3, [0] * 3) == [1, 1, 0]


def test_the_penalty_is_ctrl_s() -> None:
    logits = torch.tensor([2.0, -2.0, 0.0])
    assert penalised(logits, 1.5).tolist() == pytest.approx([2 / 1.5, -3.0, 0.0])


def test_the_penalty_is_on_the_row_s_own_tokens_alone() -> None:
    """Not on those of the padding in front of it: token 0 is padding of the second row, and a word of the first."""
    scores = torch.tensor([[4.0, 3.0, 1.0], [4.0, 3.0, 1.0]])
    settings = [SamplingConfig(repetition_penalty=2.0)] * 2
    assert chosen(settings, scores, [[0, 2], [0, 2]], [0, 1]) == [1, 0]
    transformers = pytest.importorskip("transformers")
    processor = transformers.RepetitionPenaltyLogitsProcessor(2.0)
    expected = processor(torch.tensor([[0, 2]]), scores[:1].clone())
    assert torch.equal(Choice(settings[:1], [0])(torch.tensor([[0, 2]]), scores[:1]), expected)
