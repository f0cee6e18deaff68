"""What a gate reads: the states that it weighs, and what the bare base and a router make of whole texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from lorabank.compose.base import Member, longest
from lorabank.compose.posterior import task_posterior
from lorabank.models.gates.texts import TextFacts, TextGate
from lorabank.models.mixing.runtime import Runtime

_SMALLEST = 1e-12
"""Probability below which a task is not ruled out further: its logarithm stays finite."""


def states_of(members: Sequence[Member]) -> tuple[tuple[str, ...], ...]:
    """The states of some members, each once: the digests of the adapters that it sums."""
    return tuple(dict.fromkeys(tuple(member.state) for member in members))


def with_posterior(
    facts: TextFacts, probabilities: NDArray[np.float64], members: Sequence[Member], runtime: Runtime
) -> TextFacts:
    """Facts of texts with a router's posterior of each state: tasks that share a state add up.

    Args:
        facts: Of n texts.
        probabilities: ``[n, members]``.
        members: The tasks.
        runtime: On whose device the facts lie.
    """
    states = states_of(members)
    of = np.array([states.index(tuple(member.state)) for member in members])
    summed = np.stack([probabilities[:, of == k].sum(1) for k in range(len(states))], 1)
    logs = torch.from_numpy(np.log(np.maximum(summed, _SMALLEST))).float()
    return replace(facts, posterior=logs.to(runtime.device))


def facts_of(gate: TextGate, members: Sequence[Member], runtime: Runtime, texts: Sequence[str]) -> TextFacts:
    """What a gate reads of texts that are to be answered."""
    facts = runtime.first_pass(texts, runtime.states(states_of(members)), gate.reads, longest(members))
    if "posterior" not in gate.reads:
        return facts
    return with_posterior(facts, task_posterior(members, runtime, texts), members, runtime)
