"""The dtype that fits a processor, from what Linux says of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lorabank.core.machine.cpu import cpu_dtype, cpu_flags


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("flags\t\t: fpu sse2 avx2 avx512f avx512_vnni", r"^float32 \(neither AMX nor AVX512-BF16: .* slower\)$"),
        ("flags : avx512f avx512_bf16", r"^float32; bfloat16 is fast too \(AVX512-BF16\)"),
        ("flags : amx_tile amx_bf16 avx512_bf16", r"^float32; bfloat16 is fast too \(AMX, AVX512-BF16\)"),
        ("Features\t: fp asimd i8mm bf16", r"^float32; bfloat16 is fast too \(the BF16 extension of ARM\)"),
        ("Features : fp asimd", r"^float32 \(neither"),
        ("processor : 0", r"^float32 \(whether .* not known\)$"),
    ],
)
def test_flags_to_advice(tmp_path: Path, line: str, advice: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name : amx_bf16 in a name only\n{line}\nbugs : bf16\n")
    assert re.search(advice, cpu_dtype(cpu_flags(tmp_path / "cpuinfo")))


def test_no_such_file(tmp_path: Path) -> None:
    assert cpu_flags(tmp_path / "none") is None
