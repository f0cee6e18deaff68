"""The shelves of named parts: a new method is one file, and one line here.

A `Shelf` maps names to ``"module:attribute"`` strings, so that ``--help``, completion and error messages list the
names without importing torch. Other packages add to a shelf by an entry point in its group, ``lorabank.strategies``
for `STRATEGIES`; an entry of lorabank itself goes before an installed one of the same name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from lorabank.core.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import SelectableGroups


class Shelf:
    """A table of named parts. It is a collection of their names, those of installed packages last.

    Args:
        kind: What an entry is, in the singular, for messages.
        plural: The last part of the group of entry points that adds to the shelf.
        table: Name to ``"module:attribute"``.
    """

    def __init__(self, kind: str, plural: str, table: dict[str, str]) -> None:
        self.kind = kind
        self.plural = plural
        self.group = f"lorabank.{plural}"
        self.table = table

    def __iter__(self) -> Iterator[str]:
        added = _installed(tuple(sys.path)).select(group=self.group).names
        return iter([*self.table, *sorted(added - self.table.keys())])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self.table or name in list(iter(self))

    def load(self, name: str) -> Any:
        """Import the entry of this name.

        Raises:
            ConfigError: There is no such entry; the nearest one is proposed.
        """
        self.check(name)
        if name in self.table:
            return resolve_name(self.table[name])
        return _installed(tuple(sys.path)).select(group=self.group)[name].load()

    def items(self) -> Iterator[tuple[str, Any]]:
        """Every name with its entry, imported."""
        return ((name, self.load(name)) for name in self)

    def check(self, name: str) -> None:
        """Refuse a name that is not on the shelf, without importing anything.

        Raises:
            ConfigError: There is no such entry; the nearest one is proposed.
        """
        if name not in self:
            known = ", ".join(self)
            raise ConfigError(
                self.unknown(name),
                hint=f"choose one of: {known}" if known else f"install a package with entry points {self.group}",
                unchanged="nothing was changed",
            )

    def unknown(self, name: str) -> str:
        """What to say of a name that is not on the shelf, in one sentence or two."""
        from lorabank.core.settings import nearest  # `lorabank list` needs no dataclass

        return f"there is no {self.kind} {name[:80]!r}.{nearest(name, list(self))}"


@lru_cache(maxsize=1)
def _installed(path: tuple[str, ...]) -> SelectableGroups:
    """The entry points of every package on the import path; reading them costs as much for one group as for all."""
    from importlib.metadata import entry_points

    return entry_points()


TASK_TYPES = Shelf(
    "task type",
    "task_types",
    {
        "SEQ_CLS": "lorabank.models.tasks.classification:Classification",
        "CAUSAL_LM": "lorabank.models.tasks.causal_lm:CausalLM",
        "SEQ_2_SEQ_LM": "lorabank.models.tasks.seq2seq_lm:Seq2SeqLM",
    },
)

SITES = Shelf(
    "site",
    "sites",
    {
        "linear": "lorabank.models.bases.kinds.linear:Linear",
        "conv1d": "lorabank.models.bases.kinds.conv1d:Conv1D",
    },
)

# ------------------------------------------------------------------------------------------------------- training

STRATEGIES = Shelf(
    "strategy",
    "strategies",
    {
        "olora": "lorabank.training.strategies.presets:OLORA",
        "olora-projected": "lorabank.training.strategies.projected:PROJECTED",
        "inclora": "lorabank.training.strategies.presets:INCLORA",
        "nlora": "lorabank.training.strategies.presets:NLORA",
        "inflora": "lorabank.training.strategies.inflora:INFLORA",
        "amlora": "lorabank.training.strategies.amlora:AMLORA",
        "isolated": "lorabank.training.strategies.presets:ISOLATED",
        "seqlora": "lorabank.training.strategies.presets:SEQLORA",
        "ewc": "lorabank.training.strategies.ewc:EWC",
        "replay": "lorabank.training.strategies.replay:REPLAY",
        "joint": "lorabank.training.strategies.replay:JOINT",
    },
)

VARIANTS = Shelf(
    "variant",
    "variants",
    {
        "lora": "lorabank.training.variants.lora:Lora",
        "lora-plus": "lorabank.training.variants.lora_plus:LoraPlus",
        "dora": "lorabank.training.variants.dora:Dora",
    },
)

STARTS = Shelf(
    "start",
    "starts",
    {
        "kaiming": "lorabank.training.starts.kaiming:Kaiming",
        "pissa": "lorabank.training.starts.pissa:PiSSA",
    },
)

PENALTIES = Shelf(
    "penalty",
    "penalties",
    {
        "orthogonal": "lorabank.training.penalties.orthogonal:Orthogonal",
        "orthogonal-normalized": "lorabank.training.penalties.orthogonal:OrthogonalNormalized",
        "frobenius": "lorabank.training.penalties.frobenius:Frobenius",
        "l1": "lorabank.training.penalties.l1:L1",
        "ewc": "lorabank.training.penalties.ewc:EWC",
        "norm": "lorabank.training.penalties.norm:Norm",
    },
)

# ---------------------------------------------------------------------------------------------------- composition

COMPOSERS = Shelf(
    "mode",
    "composers",
    {
        "merged": "lorabank.compose.merged:Merged",
        "manual": "lorabank.compose.merged:Merged",  # the name that it had first
        "gated": "lorabank.compose.gated:Gated",
        "attention": "lorabank.compose.gated:Gated",  # the name that it had first
        "routed": "lorabank.compose.routed:Routed",
        "prototype": "lorabank.compose.routed:Routed",  # the name that it had first
    },
)

ROUTING = "prototype"
"""The mode that messages propose where every text should go to a task of its own."""

SUMMING = "manual"
"""The mode that messages propose where several adapters should become one."""

MERGERS = Shelf(
    "merger",
    "mergers",
    {
        "weighted": "lorabank.compose.mergers.weighted:Weighted",
        "task-arithmetic": "lorabank.compose.mergers.task_arithmetic:TaskArithmetic",
        "ties": "lorabank.compose.mergers.entrywise.ties:TIES",
        "dare": "lorabank.compose.mergers.entrywise.dare:DARE",
        "dare-ties": "lorabank.compose.mergers.entrywise.dare_ties:DARETIES",
        "magnitude-prune": "lorabank.compose.mergers.entrywise.magnitude_prune:MagnitudePrune",
        "compeft": "lorabank.compose.mergers.entrywise.compeft:ComPEFT",
        "knots": "lorabank.compose.mergers.knots:KnOTS",
        "svd": "lorabank.compose.mergers.svd:SVD",
        "byom": "lorabank.compose.mergers.byom:BYOM",
        "l-lora": "lorabank.compose.mergers.l_lora:LLoRA",
        "peft-linear": "lorabank.compose.mergers.peft_linear:PEFTLinear",
        "slao": "lorabank.compose.mergers.slao:SLAO",
        "fisher": "lorabank.compose.mergers.fitted.fisher:Fisher",
        "regmean": "lorabank.compose.mergers.fitted.regmean:RegMean",
        "learned": "lorabank.compose.mergers.fitted.learned:Learned",
        "lorahub": "lorabank.compose.mergers.fitted.lorahub:LoRAHub",
        "weight-search": "lorabank.compose.mergers.fitted.weight_search:WeightSearch",
    },
)

ROUTERS = Shelf(
    "router",
    "routers",
    {
        "kmeans": "lorabank.compose.routers.kmeans:KMeans",
        "gaussian": "lorabank.compose.routers.gaussian:Gaussian",
    },
)

GATES = Shelf("gate", "gates", {"attention": "lorabank.models.gates.attention:Attention"})

# ----------------------------------------------------------------------------------------------- data and scoring

FORMATS = Shelf(
    "format",
    "formats",
    {
        ".jsonl": "lorabank.data.formats.jsonl:JsonLines",
        ".json": "lorabank.data.formats.json_list:JsonList",
        ".csv": "lorabank.data.formats.delimited:Csv",
        ".tsv": "lorabank.data.formats.delimited:Tsv",
        ".txt": "lorabank.data.formats.delimited:DelimitedText",
        ".xlsx": "lorabank.data.formats.workbook:Workbook",
        ".parquet": "lorabank.data.formats.parquet:Parquet",
    },
)

FORMS = Shelf(
    "form",
    "forms",
    {
        "classification": "lorabank.data.forms.plain:CLASSIFICATION",
        "prompt-completion": "lorabank.data.forms.plain:PROMPT_COMPLETION",
        "messages": "lorabank.data.forms.chat:MESSAGES",
        "alpaca": "lorabank.data.forms.plain:ALPACA",
        "sharegpt": "lorabank.data.forms.chat:SHAREGPT",
        "text": "lorabank.data.forms.plain:TEXT",
    },
)

METRICS = Shelf(
    "metric",
    "metrics",
    {
        "average_accuracy": "lorabank.evaluation.metrics:average_accuracy",
        "average_incremental_accuracy": "lorabank.evaluation.metrics:average_incremental_accuracy",
        "learning_accuracy": "lorabank.evaluation.metrics:learning_accuracy",
        "backward_transfer": "lorabank.evaluation.metrics:backward_transfer",
        "backward_transfer.div_t": "lorabank.evaluation.metrics:backward_transfer_div_t",
        "forward_transfer": "lorabank.evaluation.metrics:forward_transfer",
        "forgetting": "lorabank.evaluation.metrics:forgetting",
        "forgetting.first_last": "lorabank.evaluation.metrics:forgetting_first_last",
        "forgetting.max_all": "lorabank.evaluation.metrics:forgetting_max_all",
        "intransigence": "lorabank.evaluation.metrics:intransigence",
    },
)

SCORINGS = Shelf(
    "scoring",
    "scorings",
    {
        "likelihood": "lorabank.models.answering.scorings.likelihood:Likelihood",
        "generation": "lorabank.models.answering.scorings.generation:Generation",
        "perplexity": "lorabank.models.answering.scorings.perplexity:Perplexity",
    },
)

GENERATING = "generation"
"""The scoring of whatever is asked for free text: ``generate``, and rows whose answers are not labels."""

TEXT_METRICS = Shelf(
    "text metric",
    "text_metrics",
    {
        "exact_match": "lorabank.evaluation.text_metrics:exact_match",
        "token_f1": "lorabank.evaluation.text_metrics:token_f1",
        "rouge_l": "lorabank.evaluation.text_metrics:rouge_l",
    },
)

SHELVES = (
    STRATEGIES, VARIANTS, STARTS, PENALTIES, COMPOSERS, MERGERS, ROUTERS, GATES, TASK_TYPES, SITES, FORMS, FORMATS,
    SCORINGS, METRICS, TEXT_METRICS,
)  # fmt: skip
"""Every shelf, in the order in which methods are listed."""

TRAINING = (STRATEGIES, VARIANTS, STARTS, PENALTIES)
"""Those whose methods train an adapter; ``add-task --set`` reaches them and those of `ROWS`."""

ROWS = (FORMS, FORMATS, SCORINGS)
"""Those whose methods read a task's rows and ask for their answers."""
