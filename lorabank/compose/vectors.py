"""What a merge takes of each member: its adapter, or the state in which its task was learnt.

A state is a sum of adapters, each with weight 1. With the matrix ``S [member, adapter]`` of zeros and ones, weights
``w`` over states are the weights ``w S`` over adapters. A merger that is not a sum reads each state as one adapter,
whose factors are those of its adapters, concatenated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lorabank.algebra.stack import AdapterStack
from lorabank.algebra.states import StateStack
from lorabank.compose.base import Member
from lorabank.core.states import Over
from lorabank.models.mixing.resident_stack import ResidentStack


def taken_over(members: Sequence[Member], over: Over) -> list[Member]:
    """The members with what a merge takes of them."""
    return [replace(member, summed=tuple(member.state) if over == "states" else ()) for member in members]


def are_sums(members: Sequence[Member]) -> bool:
    """Whether the state of any member is more than its adapter."""
    return any(tuple(member.state) != (member.adapter,) for member in members)


def adapters_of(member: Member) -> tuple[str, ...]:
    """Digests of the adapters whose sum is taken for a member."""
    return member.summed or (member.adapter,)


def vector_name(member: Member) -> str:
    """What is taken for a member, by name: the digest of one adapter, or a digest of those of a sum."""
    digests = adapters_of(member)
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def all_adapters(members: Sequence[Member]) -> list[str]:
    """Digests of every adapter that is taken, each once, in the order in which they are met."""
    return list(dict.fromkeys(digest for member in members for digest in adapters_of(member)))


def read_adapters(members: Sequence[Member]) -> AdapterStack:
    """Every adapter that is taken, read of the bank, in float32 on the CPU."""
    return AdapterStack.build({digest: members[0].factors(digest) for digest in all_adapters(members)})


def by_adapter(members: Sequence[Member], weights: Mapping[str, float]) -> dict[str, float]:
    """Weights by task as weights by adapter."""
    total: dict[str, float] = {}
    for member in members:
        for digest in adapters_of(member):
            total[digest] = total.get(digest, 0.0) + weights[member.task]
    return total


def vector_stack(members: Sequence[Member], stack: AdapterStack | ResidentStack) -> AdapterStack:
    """What is taken for the members as adapters of one stack, each once, by `vector_name`.

    Args:
        members: The members.
        stack: Every adapter that is taken, at least.
    """
    own = {vector_name(member): adapters_of(member) for member in members}
    states = StateStack.build([*own.values()], stack.select)
    if all(len(digests) == 1 for digests in own.values()):
        return states.stack
    like = next(iter(states.stack.modules.values())).A
    made = {name: states.stack.combine(row) for name, row in zip(own, states.matrix, strict=True)}
    return AdapterStack.build(made, device=like.device, dtype=like.dtype)
