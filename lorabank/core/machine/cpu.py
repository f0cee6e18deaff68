"""What this machine's processor computes fast in."""

from __future__ import annotations

import re
from pathlib import Path

_BFLOAT16 = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "the BF16 extension of ARM"}
"""Flag of the processor to the instructions that multiply matrices in bfloat16."""


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """The instruction sets of the first processor that Linux lists; None where it does not say."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else None


def cpu_dtype(flags: frozenset[str] | None) -> str:
    """Which dtype is right for computing on a processor with these flags, and why."""
    if flags is None:
        return "float32 (whether bfloat16 is fast here is not known)"
    fast = [name for flag, name in _BFLOAT16.items() if flag in flags]
    if fast:
        return f"float32; bfloat16 is fast too ({', '.join(fast)}): eval --dtype bfloat16"
    return "float32 (neither AMX nor AVX512-BF16: bfloat16 would be slower)"
