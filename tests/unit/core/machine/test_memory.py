"""The peak of this process's memory: what is used again after it was freed counts too."""

from __future__ import annotations

import pytest

from lorabank.core.machine.memory import PeakMemory

_BLOCK, _BLOCKS = 16 << 10, 4000


def test_memory_that_was_freed_before_counts_when_it_is_used_again() -> None:
    """Blocks of 16 KiB come from the heap of the C library, which keeps them if one behind them is still held."""
    blocks = [bytearray(_BLOCK) for _ in range(_BLOCKS)]
    behind = blocks.pop()
    blocks.clear()
    memory = PeakMemory()
    blocks = [bytearray(_BLOCK) for _ in range(_BLOCKS)]
    added = memory.added()
    if added is None:
        pytest.skip("this kernel does not count anew")
    assert added > 0.8 * _BLOCK * len(blocks)
    assert len(behind) == _BLOCK
