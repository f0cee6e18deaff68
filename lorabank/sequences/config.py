"""Settings of a sequence: a whole experiment with its tasks, orders, strategies, compositions and seeds.

Read from a TOML file by `lorabank.sequences.file`. Each table is one dataclass, checked like the settings of a
command; importing this module costs the standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lorabank.core.config import ComposeConfig, EvalConfig, InitConfig, TrainConfig
from lorabank.core.settings import setting, setting_names, validate
from lorabank.core.shelves import REFERENCES, STRATEGIES
from lorabank.data.methods import of_optimizers, of_training

if TYPE_CHECKING:
    from lorabank.sequences.references.base import Reference


@dataclass(frozen=True, kw_only=True)
class SequenceSettings(InitConfig):
    """The keys outside of all tables; the base model's are those of `InitConfig`."""

    name: str = setting("", "Name of the experiment, and of its folder.")
    orders: tuple[tuple[str, ...], ...] = setting((), "One list of tasks for each order; all of the same tasks.")
    random_orders: int = setting(0, "Seeded permutations that are added to the orders.", ge=0, le=1000)
    order_seed: int = setting(0, "Seed of the permutations.", ge=0, lt=2**32)
    strategies: tuple[str, ...] = setting((), "Strategies, or names of tables [strategy.NAME].")
    seeds: tuple[int, ...] = setting((0,), "Seeds; each order and strategy is learnt once for each.")
    selection: str = setting("", "How the settings were chosen, in a sentence; on which rows.")
    max_train_rows: int | None = setting(None, "Maximum training rows of a task: a seeded sample.", ge=1)
    max_eval_rows: int | None = setting(None, "Maximum rows of a task to score on: a seeded sample.", ge=1)
    dev_fraction: float = setting(
        0.0, "Part of the training rows that is set aside to choose settings on.", ge=0, lt=1
    )
    sample_seed: int = setting(0, "Seed of the samples; the same rows for every seed of the training.", ge=0, lt=2**32)


class _Learnt:
    """The names of what may learn the tasks: strategies, and references beside them."""

    def __contains__(self, name: object) -> bool:
        return name in STRATEGIES or name in REFERENCES

    def __iter__(self) -> Iterator[str]:
        return iter([*STRATEGIES, *REFERENCES])

    def unknown(self, name: str) -> str:
        """As of a strategy."""
        return STRATEGIES.unknown(name)

    def reason(self, name: str) -> str | None:
        """Why a strategy of this name is not offered."""
        return None if name in self else STRATEGIES.reason(name)


LEARNT = _Learnt()


@dataclass(frozen=True, kw_only=True)
class StrategyTable(TrainConfig):
    """``[strategy.NAME]``: what is other for one strategy; ``strategy`` makes NAME a variant of that one."""

    strategy: str = setting(TrainConfig.strategy, "The strategy or reference that NAME is a variant of.", among=LEARNT)


@dataclass(frozen=True, kw_only=True)
class TaskTable(TrainConfig):
    """``[tasks.NAME]``: a task's data, and what is other for it."""

    dev_data: str | None = setting(None, "Rows that the settings were chosen on.")
    leave_out_labels: tuple[str, ...] = setting((), "Rows with these labels are left out, and counted.")


@dataclass(frozen=True, kw_only=True)
class CompositionTable(ComposeConfig):
    """``[[compositions]]``: one composition."""

    on: tuple[str, ...] = setting((), "Strategies whose adapters are composed; default: all.")


ROW_KEYS = (
    "data", "eval_data", "format", "map", "eval_fraction", "text_column", "label_column", "prompt_template",
    "chat_template", "delimiter", "encoding", "sheet", "skip_bad", "label_words", "scoring", "max_new_tokens",
)  # fmt: skip
"""Keys that say what the rows are and how they are asked: the same for every strategy, so that they compare.

Some are old names: what stands in ``set`` in their place is judged by `lorabank.sequences.checks.set_problems`.
"""

_SEEDS = {"seed": "seeds = [...] belongs above the tables"}
_STRATEGIES = {"strategy": "strategies = [...] belongs above the tables"}

SET_BY_SEQUENCE: dict[type[Any], dict[str, str]] = {
    TrainConfig: {**_SEEDS, **_STRATEGIES, **dict.fromkeys(("data", "eval_data"), "it belongs in [tasks.NAME]")},
    StrategyTable: {**_SEEDS, **dict.fromkeys(ROW_KEYS, "it is the same for every strategy: [train] or [tasks.NAME]")},
    TaskTable: {**_SEEDS, **_STRATEGIES},
    CompositionTable: {**_SEEDS, "replace": "a composition is made once"},
    EvalConfig: {
        "compositions": "those of [[compositions]] are scored",
        "all": "everything is scored",
        "against_bank": "the banks of a sequence are compared in its table; eval compares two others",
        **dict.fromkeys(
            ("text", "lm_eval", "include_path", "lm_eval_limit"), "eval measures it, in a bank of the sequence"
        ),
        "forgetting_matrix": "the matrix is always measured",
    },
}
"""Keys of a table that the sequence itself decides, and why."""


class Cell(NamedTuple):
    """One bank: an order (from 1), a strategy and a seed."""

    order: int
    strategy: str
    seed: int

    def __str__(self) -> str:
        return f"order {self.order}, {self.strategy}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """A checked sequence.

    Attributes:
        file: The TOML file.
        size: The table of ``[sizes]`` that is laid over the rest, or None.
        settings: The keys outside of all tables.
        train: What ``[train]`` gives, by field of `TrainConfig`.
        strategies: What each ``[strategy.NAME]`` gives.
        tasks: Each task's table.
        given: The fields that each task's table gives.
        compositions: The compositions; ``name`` and ``on`` are filled in.
        evaluation: How everything is scored.
        document: The file's content with the size laid over it, as JSON knows it.
    """

    file: Path
    size: str | None
    settings: SequenceSettings
    train: Mapping[str, Any]
    strategies: Mapping[str, Mapping[str, Any]]
    tasks: Mapping[str, TaskTable]
    given: Mapping[str, tuple[str, ...]]
    compositions: tuple[CompositionTable, ...]
    evaluation: EvalConfig
    document: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The experiment's name, with its size."""
        return f"{self.settings.name}-{self.size}" if self.size else self.settings.name

    @property
    def init(self) -> InitConfig:
        """The base model of every bank."""
        settings = self.settings
        return InitConfig(
            base=settings.base,
            revision=settings.revision,
            gguf_file=settings.gguf_file,
            quantise=settings.quantise,
            task_type=settings.task_type,
        )

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks that are learnt, in the first order."""
        return self.settings.orders[0]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every bank: all strategies of the first order and seed first, so that a first table is there early."""
        orders = range(1, len(self.settings.orders) + 1)
        return tuple(
            Cell(order, strategy, seed)
            for seed, order, strategy in product(self.settings.seeds, orders, self.settings.strategies)
        )

    def order(self, cell: Cell) -> tuple[str, ...]:
        """The tasks of a cell's order."""
        return self.settings.orders[cell.order - 1]

    def method(self, strategy: str) -> str:
        """The name on a shelf of what a table ``[strategy.NAME]`` is a variant of, or of the strategy itself."""
        return str(self.strategies.get(strategy, {}).get("strategy", strategy))

    def reference(self, strategy: str) -> Reference | None:
        """What trains weights of the base itself under this name; None for a strategy, which trains adapters."""
        name = self.method(strategy)
        found: Reference | None = None if name in STRATEGIES else REFERENCES.load(name)
        return found

    def composed(self, strategy: str, seed: int) -> tuple[ComposeConfig, ...]:
        """The compositions of a strategy's adapters; a reference has none."""
        if self.reference(strategy):
            return ()
        tables = [table for table in self.compositions if strategy in table.on]
        return tuple(_as(ComposeConfig, table, seed=seed) for table in tables)

    def training(self, task: str, strategy: str | None = None, *, seed: int = 0) -> TrainConfig:
        """The settings of a task: those of ``[train]``, over them the strategy's, over them the task's own.

        Of a reference ``strategy`` stays at its default, its own defaults win over ``[train]`` and over the task, and
        in both what ``set`` says of training is left out.

        Args:
            task: The task.
            strategy: A strategy; None for what all have in common (what the rows are).
            seed: Seed of the training.
        """
        table = self.tasks[task]
        own = {name: getattr(table, name) for name in self.given[task] if name not in ("dev_data", "leave_out_labels")}
        chosen = {"strategy": strategy, **self.strategies.get(strategy, {})} if strategy else {}
        sets = [tuple(given.get("set", ())) for given in (self.train, chosen, own)]
        if strategy and (reference := self.reference(strategy)):
            chosen = {**reference.defaults, **self.strategies.get(strategy, {})}
            chosen.pop("strategy", None)
            own = {name: value for name, value in own.items() if name not in reference.defaults}
            sets = [_of_rows(sets[0]), sets[1], _of_rows(sets[2])]
        every = tuple(one for given in sets for one in given)
        values = {**self.train, **chosen, **own, "set": every, "seed": seed}
        return validate(TrainConfig, values, where=f"task {task}")


def _of_rows(given: tuple[str, ...]) -> tuple[str, ...]:
    """Those of ``set`` that say what the rows are, how they are asked, and how a step is made of gradients."""
    training = of_training(given)
    return tuple(one for one in given if one not in training or of_optimizers(one))


def _as(kind: type[ComposeConfig], table: CompositionTable, **changes: Any) -> ComposeConfig:
    """The fields of a table that are those of the settings it extends."""
    return kind(**{name: getattr(table, name) for name in setting_names(kind)} | changes)
