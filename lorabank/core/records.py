"""Stored facts: immutable, plain Python values that every package may pass around.

Digests are lower-case SHA-256 hex strings, times are UTC ISO 8601 strings, durations are seconds. The records are
named tuples because `lorabank list` creates these classes each time it starts, and dataclasses take four times as
long. Annotations are not postponed in this module and in the others that `list` loads, because a named tuple compiles
each postponed annotation.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar, overload

from lorabank.core.commands import Command
from lorabank.core.showing import shown

DERIVED = "derived "
"""Prefix of the roles of objects that are derived from a composition and were added after it was stored."""

AS_TRAINED = "as-trained"
"""The subject of a score of the state that training left; no composition may have this name."""

T = TypeVar("T")

TaskState = Literal["training", "ready", "failed", "removed"]
Split = Literal["train", "eval", "calibration", "replay"]


@shown("name", "source", "task_type", "dtype", "parameters")
class BaseModelRecord(NamedTuple):
    """The one base model of a bank.

    Attributes:
        name: Hub id or path as the user gave it.
        source: Where the weights came from: ``"hub"``, ``"local"``, ``"package"`` or ``"gguf"`` (a file, converted).
        revision: Commit of a hub model, None otherwise.
        config_hash: SHA-256 of the canonical ``config.json``.
        fingerprint: SHA-256 over every tensor's name, dtype, shape and bytes; of a base that lorabank quantises, over
            that and ``quantisation``.
        tokenizer_hash: SHA-256 of the tokenizer's files.
        chat_template_hash: SHA-256 of the chat template, None where there is none.
        dtype: The dtype of the weights, for example ``"float32"``.
        quantisation: The quantiser with all its settings, as `read_recipe` takes them, where lorabank quantises
            the base; the method of a checkpoint that is quantised already; None for a float base.
        task_type: PEFT's ``TaskType`` name: ``"SEQ_CLS"``, ``"CAUSAL_LM"`` or ``"SEQ_2_SEQ_LM"``.
        hidden_size: Width of the last hidden state.
        parameters: Number of weights.
    """

    name: str
    source: str
    revision: str | None
    config_hash: str
    fingerprint: str
    tokenizer_hash: str
    dtype: str
    task_type: str
    hidden_size: int
    parameters: int
    chat_template_hash: str | None = None
    quantisation: str | None = None
    created_at: str = ""


@shown("name", "position", "task_type", "labels", "state")
class TaskRecord(NamedTuple):
    """One task of the sequence; ``position`` counts from 1 and is never reused."""

    name: str
    position: int
    task_type: str
    labels: tuple[str, ...]
    state: TaskState
    adapter: str | None = None
    """Digest of the task's adapter."""
    statistics: str | None = None
    """Digest of the blob with centroids, feature mean and scatter (the router's input)."""
    prompt_template: str | None = None
    created_at: str = ""
    removed_at: str | None = None
    note: str | None = None
    tags: tuple[str, ...] = ()
    first_name: str | None = None
    """What it was called before it was first renamed, None where it never was: see `born`."""
    replaces: int | None = None
    """Position of the version that it took the place of."""

    @property
    def born(self) -> str:
        """The name that never changes: what is stored under a task's name is stored under this one."""
        return self.first_name or self.name


@shown("task", "split", "rows", "source")
class DatasetRecord(NamedTuple):
    """One split of a task's data; ``sha256`` is over the canonical rows, in order."""

    task: str
    split: Split
    rows: int
    columns: tuple[str, ...]
    sha256: str
    source: str
    rows_dropped: int = 0
    rows_cut: int = 0
    blob: str | None = None
    """Digest of the Parquet blob, None for a split whose rows are not kept."""
    row_digests: str | None = None
    """Digest of the blob with a digest of each row, None where none are kept."""


class Lineage(Sequence[T]):
    """Adapters in order, most of which another lineage holds already: a sequence like a tuple, and equal to one.

    The lineages of T tasks that were each trained on top of all earlier ones together take the space of T entries,
    not of T (T - 1) / 2.

    Args:
        own: The last entries.
        before: What comes before them.
        without: Entries of ``before`` that are left out.
    """

    __slots__ = ("_before", "_length", "_own", "_without")

    def __init__(self, own: Iterable[T], before: "Lineage[T] | None" = None, without: Iterable[T] = ()) -> None:
        self._own = tuple(own)
        self._before = before
        self._without = frozenset(without)
        kept: Sequence[T] = () if before is None else before
        if self._without:
            kept = [one for one in kept if one not in self._without]
        self._length = len(kept) + len(self._own)

    def __iter__(self) -> Iterator[T]:
        found: list[T] = []
        for part in reversed(list(self._parts())):
            if part._without:
                found = [one for one in found if one not in part._without]
            found += part._own
        return iter(found)

    def _parts(self) -> "Iterator[Lineage[T]]":
        """This one, and what comes before it, from the last to the first."""
        part: Lineage[T] | None = self
        while part is not None:
            yield part
            part = part._before

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, tuple | Lineage) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> "tuple[type[Lineage[T]], tuple[tuple[T, ...]]]":
        return Lineage, (tuple(self),)  # alone: what comes before it would be pickled one inside the other

    @staticmethod
    def union(lineages: "Iterable[Lineage[T]]") -> dict[T, None]:
        """The entries of some lineages, each once, in the order in which they are met; a shared part is read once."""
        found: dict[T, None] = {}
        met: dict[int, Lineage[T]] = {}
        for lineage in lineages:
            new: list[Lineage[T]] = []
            for part in lineage._parts():
                if id(part) in met:
                    break
                new.append(part)
                if part._without:
                    break
            for part in reversed(new):
                met[id(part)] = part
                found.update(dict.fromkeys(part if part._without else part._own))
        return found


@shown("task", "digest", "r", "strategy", "steps")
class AdapterRecord(NamedTuple):
    """One trained (or imported) LoRA adapter with its lineage."""

    digest: str
    task: str
    r: int
    lora_alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...]
    strategy: str
    penalties: dict[str, float]
    context: Sequence[str]
    """Digests of the adapters that were active, frozen, while this one was trained."""
    seed: int
    steps: int
    wall_seconds: float
    device: str
    bytes: int
    head_digest: str | None
    files: dict[str, str]
    """File name to SHA-256."""
    versions: dict[str, str]
    config: dict[str, Any]
    metrics: dict[str, Any]
    created_at: str = ""
    objects: Mapping[str, str] = MappingProxyType({})
    """Digests of blobs by role: facts of the training that later tasks need. They go with the task."""


@shown("name", "mode", "members", "state")
class CompositionRecord(NamedTuple):
    """A named way to use several adapters at once; objects are blobs by role."""

    name: str
    mode: str
    members: tuple[str, ...]
    """Task names in sequence order."""
    adapters: tuple[str, ...]
    """Adapter digests, one for each member."""
    parameters: dict[str, Any]
    objects: dict[str, str]
    state: Literal["ready", "removed"] = "ready"
    created_at: str = ""
    removed_at: str | None = None
    note: str | None = None
    tags: tuple[str, ...] = ()


@shown("subject", "stage", "task", "metric", "value", "n")
class EvaluationRecord(NamedTuple):
    """One cell: the score on ``task`` of ``subject`` at ``stage``, cached under ``key``."""

    key: str
    subject: str
    """``"as-trained"`` or the composition's name."""
    stage: int
    """Position of the last task known (0: the untrained base)."""
    task: str
    metric: str
    value: float
    n: int
    low: float
    high: float
    task_id: Literal["given", "routed"]
    settings: dict[str, Any]
    detail: dict[str, Any]
    """Extra facts of the cell: oracle accuracy, routed counts by task, seconds."""
    created_at: str = ""


class OperationRecord(NamedTuple):
    """A change under way: a name reserved before the work starts."""

    id: str
    kind: str
    name: str
    pid: int
    boot_id: str
    host: str
    config: dict[str, Any]
    started_at: str
    seen_at: str = ""
    alive: bool = True


class Finding(NamedTuple):
    """One thing that ``verify`` or ``doctor`` found wrong."""

    kind: str
    subject: str
    message: str
    hint: str = ""
    commands: tuple[Command, ...] = ()
