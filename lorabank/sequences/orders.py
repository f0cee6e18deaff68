"""The orders of a sequence: random ones, and how much of what is measured is due to the order."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence

from lorabank.sequences.results import OrderEffect


def with_random(
    orders: Sequence[tuple[str, ...]], tasks: Sequence[str], count: int, seed: int
) -> tuple[tuple[str, ...], ...]:
    """Orders with others behind them; of two counts the smaller gives the first ones of the larger.

    Args:
        orders: Those that are given; without any, the tasks as they come are the first.
        tasks: The tasks.
        count: Seeded permutations to be added, none twice and none that is there; no more than there are.
        seed: Their seed.
    """
    found = list(orders) or [tuple(tasks)]
    chance = random.Random(f"orders {seed}")
    wanted = min(len(found) + count, math.factorial(len(found[0])))
    while len(found) < wanted:
        order = tuple(chance.sample(sorted(found[0]), len(found[0])))
        if order not in found:
            found.append(order)
    return tuple(found)


def order_effect(scores: Mapping[int, Sequence[float | None]]) -> OrderEffect | None:
    """How scores depend on the order: analysis of variance with the order as a random effect.

    Of orders with n seeds each, ``MS_between`` is n times the variance of the orders' means and ``MS_within`` the
    variance of scores around the mean of their order; ``(MS_between - MS_within) / n`` estimates the variance that is
    due to the order, without that of the seed (Searle, Casella and McCulloch, Variance Components, 1992, section 3.6).

    Args:
        scores: Order to the scores of its seeds.

    Returns:
        None of fewer than two orders, or where a score is missing.
    """
    found = {order: [one for one in own if one is not None and math.isfinite(one)] for order, own in scores.items()}
    if len(found) < 2 or any(len(found[order]) < len(own) for order, own in scores.items()):
        return None
    means = {order: statistics.fmean(own) for order, own in found.items()}
    return OrderEffect(means, statistics.stdev(means.values()), _due_to_order(list(found.values())))


def _due_to_order(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation; None where no order has two seeds."""
    total, orders = sum(map(len, groups)), len(groups)
    if total == orders:
        return None
    grand = statistics.fmean(score for group in groups for score in group)
    means = [statistics.fmean(group) for group in groups]
    between = sum(len(group) * (mean - grand) ** 2 for group, mean in zip(groups, means, strict=True)) / (orders - 1)
    inner = sum((score - mean) ** 2 for group, mean in zip(groups, means, strict=True) for score in group)
    size = (total - sum(len(group) ** 2 for group in groups) / total) / (orders - 1)  # n, where all have as many
    return math.sqrt(max(0.0, between - inner / (total - orders)) / size)
