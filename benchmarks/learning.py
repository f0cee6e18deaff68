"""``python -m benchmarks.learning``: every variant and start of the shelves, on the same tasks one after another.

Each variant is trained with the default start, each start with plain LoRA, and plain LoRA at twice its learning rate
too, since part of what variants gain is a larger step. Everything else is the default: the strategy is O-LoRA, and
`isolated` for a method that O-LoRA refuses. All tasks are scored on their test rows after each task, by the state as
trained with the task id given. No setting is chosen here. A run that is interrupted resumes in the tasks that are
learnt, and rows that ``--json FILE`` has already are kept.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two processes side by side beat two threads

import argparse
import json
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.sequences import Told
from benchmarks.task_orders import Asked, earlier, learn_all, made, prepare, read_arguments, spread, write_rows
from lorabank.core.shelf import Shelves
from lorabank.core.shelves import MIXTURES, STARTS, VARIANTS

PLAIN = "lora", "kaiming"
LORAS = Shelves(VARIANTS, MIXTURES)
FASTER = 2.0
STRATEGIES = ("olora", "isolated")
"""A method is trained under the first that takes it."""
_METRICS = ("average_accuracy", "learning_accuracy", "forgetting")


class Method(NamedTuple):
    """What is trained."""

    variant: str
    start: str
    faster: bool = False

    def __str__(self) -> str:
        return f"{self.variant}-{self.start}" + ("-faster" if self.faster else "")


def methods(wanted: Collection[str]) -> list[Method]:
    """Those of ``wanted`` names, or all."""
    pairs = [PLAIN, *((one, PLAIN[1]) for one in LORAS), *((PLAIN[0], one) for one in STARTS)]
    every = [Method(*pair) for pair in dict.fromkeys(pairs)]
    every.insert(1, Method(*PLAIN, faster=True))
    return [
        one for one in every if not wanted or {one.variant, one.start} & set(wanted) - set(PLAIN) or str(one) in wanted
    ]


def strategy_for(method: Method) -> str | None:
    """The first strategy that takes a method; None where none does."""
    from lorabank.core.config import TrainConfig
    from lorabank.training.methods import chosen_strategy

    variant, start = LORAS.load(method.variant)(), STARTS.load(method.start)()
    taken = (
        one for one in STRATEGIES if not variant.refuses(chosen_strategy(TrainConfig(data="", strategy=one)), start)
    )
    return next(taken, None)


def measured(folder: Path, asked: Asked, method: Method, strategy: str, seed: int) -> dict[str, Any]:
    """Learn the tasks in a bank of its own and score them."""
    from lorabank.bank.bank import Bank
    from lorabank.core.config import EvalConfig, TrainConfig
    from lorabank.sequences.bank import compose_and_measure
    from lorabank.training.methods import learning_rate

    observer, bank = Told(), folder / f"{method}-{seed}"
    settings = {"strategy": strategy, "seed": seed, "variant": method.variant, "start": method.start}
    rate = learning_rate(TrainConfig(data="", **settings)) * (FASTER if method.faster else 1.0)
    settings["learning_rate"] = rate
    resumed, begun = bank.exists(), time.process_time()
    learn_all(bank, folder / "data", asked, settings, observer)
    seconds = time.process_time() - begun
    report = compose_and_measure(bank, (), EvalConfig(forgetting_matrix=True), observer)[0]
    adapters = list(Bank.open(bank).snapshot().by_position.values())
    overlaps = [value for one in adapters for value in one.metrics.get("overlap", {}).values()]
    return {
        **method._asdict(),
        "strategy": strategy,
        "seed": seed,
        "learning_rate": rate,
        **{name: report.scalars[name] for name in _METRICS},
        "scores": dict(zip(report.tasks, report.values[-1], strict=True)),
        "seconds": None if resumed else round(seconds / len(adapters), 2),
        "bytes": statistics.mean(one.bytes for one in adapters),
        "capacity_left": adapters[-1].metrics.get("capacity_left"),
        "overlap": max(overlaps, default=None),
        **made(),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean and sample standard deviation over the seeds, best average first, as Markdown."""
    groups: dict[Method, list[Mapping[str, Any]]] = defaultdict(list)
    for one in rows:
        groups[Method(one["variant"], one["start"], one["faster"])].append(one)
    seeds = len({one["seed"] for one in rows})
    lines = [
        "| variant | start | strategy | learning rate | average | learning | forgetting | CPU s a task | stored KB "
        "| capacity left | overlap |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    plain = _mean(groups.get(Method(*PLAIN), []), "seconds")
    for method, group in sorted(groups.items(), key=lambda item: -_average(item[1])):
        took = _mean(group, "seconds")
        times = f" ({took / plain:.2f} x)" if took and plain else ""
        cells = [
            f"`{method.variant}`",
            f"`{method.start}`",
            group[0]["strategy"],
            f"{group[0]['learning_rate']:g}" + (" (doubled)" if method.faster else ""),
            *(spread([one[name] for one in group], seeds) for name in _METRICS),
            _shown(took, ".1f") + times,
            _shown(statistics.mean(one["bytes"] for one in group) / 1e3, ".0f"),
            _shown(_mean(group, "capacity_left"), ".3f"),
            _shown(_mean(group, "overlap"), ".3f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def command(rows: Sequence[Mapping[str, Any]]) -> str:
    """The module and the options that choose these rows."""
    named = dict.fromkeys(str(Method(one["variant"], one["start"], one["faster"])) for one in rows)
    return f"benchmarks.learning --methods {' '.join(named)}"


def _average(group: Sequence[Mapping[str, Any]]) -> float:
    return statistics.mean(one["average_accuracy"] for one in group)


def _mean(group: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Over the rows that have it; None where none has."""
    there = [one[name] for one in group if one[name] is not None]
    return statistics.mean(there) if there else None


def _shown(number: float | None, form: str) -> str:
    return "" if number is None else format(number, form)


def main() -> int:
    """Run what is asked for."""
    from lorabank.core.errors import LorabankError

    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    names = {name for one in methods(()) for name in (one.variant, one.start, str(one))} - set(PLAIN)
    found, asked = read_arguments(parser, "learning", sorted(names))
    folder = asked.folder(found.folder)
    prepare(folder / "data", asked)
    rows = earlier(found.json, asked)
    done = {(Method(one["variant"], one["start"], one["faster"]), one["seed"]) for one in rows}
    for seed in found.seeds:
        for method in methods(found.methods):
            if (method, seed) in done:
                continue
            strategy = strategy_for(method)
            if strategy is None:
                print(f"{method} is left out: {' and '.join(STRATEGIES)} refuse it", file=sys.stderr, flush=True)
                continue
            try:
                row = measured(folder, asked, method, strategy, seed)
            except LorabankError as error:
                print(f"{method}, seed {seed}, is left out: {error}", file=sys.stderr, flush=True)
                continue
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.append(row)
            if found.json:
                note = "scored as trained, with the task id; capacity is the share of input directions that stay free"
                write_rows(found.json, "Variants and starts", command(rows), asked, rows, note, table(rows))
                shutil.rmtree(folder / f"{method}-{seed}")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
