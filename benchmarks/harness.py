"""How things are compared.

A time by itself says more about the machine than about the code, so every number is a ratio within one run: each form
is warmed up, then the forms take turns, in an order that rotates from round to round, and the ratio is the median over
the rounds of (form / baseline) *within* the round. The clock is the CPU time of the process with one thread, which
other work on the same cores disturbs least; on a GPU it is wall time (`benchmarks.device.clock`).
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lorabank

_LIBRARIES = ("torch", "transformers", "peft", "click")
_ROOT = Path(__file__).parents[1]
_CODE = ("lorabank", "cli", "migrations", "benchmarks", ":!benchmarks/results")


@dataclass(frozen=True)
class Result:
    """One number beside its bar, both in ``unit``; lower is better.

    Attributes:
        benchmark: Name of the benchmark.
        what: What was measured, against what.
        value: The number.
        bar: The number must not be above it.
        unit: ``"x"`` for a ratio.
        detail: What else was seen: medians in seconds, quartiles, bytes.
        peer: What the usual tool needs, measured in the same run in the same unit, where there is one.
        floor: What the work alone comes to, likewise.
    """

    benchmark: str
    what: str
    value: float
    bar: float
    unit: str
    detail: dict[str, Any]
    peer: float | None = None
    floor: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the bar is met."""
        return self.value <= self.bar


@dataclass(frozen=True)
class Comparison:
    """A form against the baseline: the median ratio, its quartiles, and the median seconds of both."""

    ratio: float
    quartiles: tuple[float, float]
    seconds: float
    baseline_seconds: float
    rounds: int


def child_environment() -> dict[str, str]:
    """For a child process whose warm-up leaves byte code behind, as pip does: compiling is not part of a command."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def children_cpu_time() -> float:
    """CPU seconds, user and system, of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compare(
    forms: Mapping[str, Callable[[], object]],
    *,
    baseline: str,
    rounds: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Comparison]:
    """Measure every form against one of them.

    Args:
        forms: Name to a call that does the work once.
        baseline: The form that the others are divided by.
        rounds: How often each form is measured.
        warmup: Calls of each form before that.
        clock: Seconds of the time that counts.

    Returns:
        Every form but the baseline.
    """
    names = list(forms)
    for name in names * warmup:
        forms[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = clock()
            forms[name]()
            seconds[name].append(clock() - start)
    return {name: _paired(seconds[name], seconds[baseline]) for name in names if name != baseline}


def _paired(form: list[float], baseline: list[float]) -> Comparison:
    ratios = [a / b for a, b in zip(form, baseline, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return Comparison(median, (low, high), statistics.median(form), statistics.median(baseline), len(ratios))


def from_comparison(benchmark: str, what: str, comparison: Comparison, bar: float) -> Result:
    """A ratio and its bar as a result."""
    return Result(benchmark, what, comparison.ratio, bar, "x", asdict(comparison))


def environment(device: str | None = None) -> dict[str, Any]:
    """When and on what kind of machine this ran: nothing that names the machine itself."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "processor": _processor() if device in (None, "cpu") else _gpu(str(device)),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"lorabank": lorabank.__version__} | {name: version(name) for name in _LIBRARIES},
        "threads": 1,
        "clock": "one thread, CPU time" if device in (None, "cpu") else "synchronised wall time",
    }


def commit(root: Path = _ROOT) -> str | None:
    """The commit of the code that runs, with ``+changes`` where its files are not as committed.

    None where it is not known: outside a git checkout, or without git.
    """
    git = ("git", "-C", str(root))
    try:
        found = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *_CODE], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() + ("+changes" if changed else "")


def write_whole(target: Path, text: str) -> None:
    """Write a file at once: whoever stops the program finds the old text or the new one, never a part."""
    part = target.with_name(f"{target.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(target)


def _gpu(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device)


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
