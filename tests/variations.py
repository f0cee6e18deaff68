"""``python -m tests.variations [NAME ...] [-- PYTEST OPTION ...]``: the suite on other processors and in other places.

What a test shows must not hang on the kernel that a library picks for a processor, on threads, on the locale, on the
time zone or on the order of the tests. Each variation changes several of these at once and runs pytest; without a name
all run, one after the other. The order of a run is printed and can be asked for again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

# One kernel of each library (OpenBLAS under numpy and scipy; ATen, oneDNN and MKL under torch). A processor that lacks
# the newest takes what it has.
_SSE = {
    "OPENBLAS_CORETYPE": "Prescott",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
}
_AVX2 = {
    "OPENBLAS_CORETYPE": "Haswell",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
_AVX512 = {"OPENBLAS_CORETYPE": "SkylakeX"}
_ASCII = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

VARIATIONS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "sse": (_SSE | _ASCII | {"OMP_NUM_THREADS": "1", "TZ": "Asia/Kathmandu"}, ("--random-order",)),
    "avx2": (_AVX2 | {"OMP_NUM_THREADS": "2", "TZ": "America/St_Johns"}, ("--random-order",)),
    "avx512": (_AVX512 | {"OMP_NUM_THREADS": "1", "TZ": "Pacific/Kiritimati"}, ()),
}
"""Name to environment and options of pytest."""


def main(words: list[str]) -> int:
    """Run what was asked for; returns 1 when anything failed, 2 when a name is unknown."""
    cut = words.index("--") if "--" in words else len(words)
    names, options = words[:cut] or list(VARIATIONS), words[cut + 1 :]
    if unknown := [name for name in names if name not in VARIATIONS]:
        print(f"no variation {', '.join(unknown)}; there are {', '.join(VARIATIONS)}")
        return 2
    failed = []
    for name in names:
        environment, own = VARIATIONS[name]
        print(f"\n== {name}: {' '.join(f'{key}={value}' for key, value in environment.items())}", flush=True)
        began = time.monotonic()
        if subprocess.run([sys.executable, "-m", "pytest", *own, *options], env=os.environ | environment).returncode:
            failed.append(name)
        print(f"== {name}: {'failed' if name in failed else 'passed'} in {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
