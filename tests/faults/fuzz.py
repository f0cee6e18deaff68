"""Fuzzing: mutated headers by the hundred thousand, hypothesis for what has a grammar, Atheris where coverage leads.

Each function but `run` is ``(count, seed) -> {"tries", "lost", "damaged", "uncaught", "examples"}``; whatever a target
does but return, raise an error of lorabank's in one line of bounded length, and stay below a second and 200 MB, is
uncaught.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabank.core.errors import MAX_MESSAGE, LorabankError
from lorabank.core.machine.packages import install
from tests.faults.fuzz_targets import SEEDS, TARGETS, clear
from tests.faults.outcome import Outcome, outcome_of

SECONDS, KILOBYTES = 1.0, 200_000
_TOKENS = (
    b"18446744073709551615", b"9223372036854775808", b"-1", b"1e400", b"NaN", b"Infinity", b"null", b"true", b"[]",
    b"{}", b'""', b'"__metadata__"', b'"\\ud800"', b"\\u0000", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"[" * 2000,
    b"9" * 4400, b'"data_offsets":[0,0]', b'"dtype":"F64"', b"\x1b[2J", b"\n", b"\xe2\x80\xa8", b",", b":", b'"',
)  # fmt: skip


@dataclass
class Tally:
    """Tries and findings of one target."""

    target: Callable[[bytes], None]
    tries: int = 0
    uncaught: int = 0
    examples: list[str] = field(default_factory=list)

    def feed(self, data: bytes) -> None:
        """Give the target one input and judge what it does."""
        self.tries += 1
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if self._seconds(data, judged=True) > SECONDS and self._seconds(data, judged=False) > SECONDS:
            self._find("over a second", data)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory > KILOBYTES:
            self._find("over 200 MB", data)

    def _seconds(self, data: bytes, *, judged: bool) -> float:
        """CPU time of one input. What is slow is measured twice: this process may have paused for its own garbage."""
        start = time.process_time()
        try:
            self.target(data)
        except LorabankError as error:
            if judged and (error.exit_code == 1 or "\n" in error.message or len(error.message) > MAX_MESSAGE + 3):
                self._find(f"not one line of bounded length: {error.message[:200]!r}", data)
        except Exception as error:  # the point of it all
            if judged:
                self._find(f"{type(error).__name__}: {str(error)[:200]}", data)
        return time.process_time() - start

    def _find(self, what: str, data: bytes) -> None:
        self.uncaught += 1
        if len(self.examples) < 5:
            self.examples.append(f"{self.target.__name__}: {what} on {data[:200]!r}")

    def counts(self) -> dict[str, Any]:
        """What a runner is told."""
        clear()
        return {"tries": self.tries, "lost": 0, "damaged": 0, "uncaught": self.uncaught, "examples": self.examples}


def run(count: int | None, seed: int) -> Outcome:
    """F11: ``count`` mutated headers, a twentieth of that for each kind of text, and under Atheris if it is there."""
    count = count or 100_000
    outcome = outcome_of(headers(count, seed))
    for kind in (jsonl, configs, names, manifests):
        outcome.add(outcome_of(kind(count // 20, seed)))
    for target in TARGETS:
        led = outcome_of(atheris(target, count // 20, seed))
        if led.skipped:
            outcome.notes.append(led.skipped)
            break
        outcome.add(led)
    return outcome


def headers(count: int = 100_000, seed: int = 0) -> dict[str, Any]:
    """Mutants of safetensors files, half of them with a length that fits the mutated header."""
    chance, tally = random.Random(seed), Tally(TARGETS["header"])
    (good,) = SEEDS["header"]
    size = int.from_bytes(good[:8], "little")
    text, tensors = good[8 : 8 + size], good[8 + size :]
    for _ in range(count):
        if chance.random() < 0.5:
            mutant = mutated(text, chance)
            tally.feed(len(mutant).to_bytes(8, "little") + mutant + tensors)
        else:
            tally.feed(mutated(good, chance))
    return tally.counts()


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to four changes: a bit, a digit, a piece cut out or doubled, a token put in, the end cut off."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(found) or 1)
        kind = chance.randrange(6)
        if kind == 0 and found:
            found[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and found:
            found[at] = chance.choice(b"0123456789-.eE")
        elif kind == 2:
            del found[at : at + chance.randint(1, 40)]
        elif kind == 3:
            found[at:at] = found[at : at + chance.randint(1, 80)]
        elif kind == 4:
            found[at:at] = chance.choice(_TOKENS)
        elif chance.random() < 0.2:
            del found[at:]
    return bytes(found)


def jsonl(count: int = 5000, seed: int = 0) -> dict[str, Any]:
    """Rows: objects of the known columns with any values, any bytes, mutants of good files."""
    return _hypothesis("rows", _rows, count, seed)


def configs(count: int = 5000, seed: int = 0) -> dict[str, Any]:
    """Adapter configs: any JSON in any field of PEFT, and mutants of a good one."""
    return _hypothesis("config", _configs, count, seed)


def names(count: int = 5000, seed: int = 0) -> dict[str, Any]:
    """Names of tasks: any text."""
    return _hypothesis("name", _names, count, seed)


def manifests(count: int = 5000, seed: int = 0) -> dict[str, Any]:
    """``bank.json``: any JSON in its fields, and mutants of a good one."""
    return _hypothesis("manifest", _manifests, count, seed)


def _hypothesis(target: str, make: Callable[[Any], Any], count: int, seed: int) -> dict[str, Any]:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    tally = Tally(TARGETS[target])
    mutants = st.builds(
        lambda good, number: mutated(good, random.Random(number)),
        st.sampled_from(SEEDS[target]),
        st.integers(0, 2**32),
    )

    @seeded(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=[*HealthCheck],
    )
    @given(st.one_of(make(st), mutants))
    def feed(data: bytes) -> None:
        tally.feed(data)

    feed()
    return tally.counts()


def _json(st: Any) -> Any:
    numbers = st.one_of(st.integers(), st.integers(-(10**30), 10**30), st.floats())
    leaves = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=20))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
        max_leaves=8,
    )


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _rows(st: Any) -> Any:
    columns = st.sampled_from(
        ["text", "label", "messages", "prompt", "completion", "instruction", "output", "role", "content", "value"]
    )
    row = st.dictionaries(columns, _json(st), max_size=4).map(_dumped)
    good = st.fixed_dictionaries({"text": st.text(max_size=8), "label": st.sampled_from(["x", "y", "", 1, 1.0, None])})
    lines = st.lists(st.one_of(row, good.map(_dumped), st.binary(max_size=40)), max_size=8)
    return st.one_of(lines.map(b"\n".join), st.lists(good.map(_dumped), min_size=4, max_size=12).map(b"\r\n".join))


def _configs(st: Any) -> Any:
    good = json.loads(SEEDS["config"][0])
    fields = st.sampled_from(
        [
            *good,
            "r_sum",
            "save_loranew",
            "init_lora_weights",
            "use_dora",
            "layer_replication",
            "auto_mapping",
            "\ud800",
        ]
    )
    changes = st.dictionaries(fields, st.one_of(_json(st), st.integers(-2, 2000)), min_size=1, max_size=3)
    return changes.map(lambda found: json.dumps({**good, **found}).encode())


def _names(st: Any) -> Any:
    likely = st.text(st.sampled_from("abz019._-/\\ \n\x00\x1bé"), max_size=70)
    return st.one_of(st.text(), likely, st.from_regex(r"[a-z0-9._-]{1,66}")).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )


def _manifests(st: Any) -> Any:
    good = json.loads(SEEDS["manifest"][0])
    changes = st.dictionaries(st.sampled_from([*good, "x"]), _json(st), min_size=1, max_size=3)
    return st.one_of(changes.map(lambda found: _dumped({**good, **found})), _json(st).map(_dumped))


def atheris(target: str, count: int = 100_000, seed: int = 0) -> dict[str, Any]:
    """Inputs that are led by the code they reach, in a process of their own.

    Args:
        target: One of `TARGETS`.
        count: Runs.
        seed: 1 or more; libFuzzer takes 0 for "draw one".

    Returns:
        As the others; with ``skipped`` and the reason where Atheris is not installed.
    """
    counts: dict[str, Any] = {"tries": 0, "lost": 0, "damaged": 0, "uncaught": 0, "examples": []}
    if importlib.util.find_spec("atheris") is None:
        return counts | {"skipped": f"atheris is not installed: {install('fuzz')}"}
    with tempfile.TemporaryDirectory(prefix="lorabank-atheris-") as folder:
        for number, good in enumerate(SEEDS[target]):
            (Path(folder) / f"seed-{number}").write_bytes(good)
        command = [sys.executable, "-m", "tests.faults.fuzz_atheris", target, folder, f"-runs={count}"]
        command += [
            f"-seed={seed + 1}",
            "-max_len=4096",
            "-timeout=10",
            "-rss_limit_mb=2048",
            f"-artifact_prefix={folder}/",
        ]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    runs = re.search(r"Done (\d+) runs", done.stderr)
    if done.returncode or runs is None:
        return counts | {"tries": 1, "uncaught": 1, "examples": [f"{target}: {done.stderr[-1500:]}"]}
    return counts | {"tries": int(runs[1])}
