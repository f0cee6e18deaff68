"""What every router promises.

An entry of the shelf `lorabank.core.shelves.ROUTERS` is a frozen dataclass of its settings, derived from
`RouterMethod`, or from `LayerMethod` where it looks at features of one layer. It says which kind of statistics it
reads of each task, and makes of them what then tells the tasks apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, Self

from lorabank.compose.routers.evidence import Evidence
from lorabank.compose.routers.query import Query
from lorabank.compose.routers.ranking import Ranked
from lorabank.compose.routers.statistics import Floats, StoredStatistics, TaskStatistics, fit_statistics
from lorabank.core.settings import setting
from lorabank.models.mixing.features import LAST


class Kept(Protocol):
    """A kind of statistics of one task, kept under the role among the facts of its adapter.

    The role of `TaskStatistics` is empty: the task itself keeps those.
    """

    role: ClassVar[str]

    def to_bytes(self) -> bytes:
        """The same statistics give the same bytes."""
        ...

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote, or raise `DamagedError`."""
        ...


class Router(Protocol):
    """Tells tasks apart."""

    def rank(self, query: Query) -> Ranked:
        """The best task of each text, equal scores going to the earlier one, and its margin."""
        ...


class FeatureRouter(Protocol):
    """Tells tasks apart by features of one layer."""

    def rank(self, features: Floats) -> Ranked:
        """[n, d] features to the best task of each, equal scores going to the earlier one, and its margin."""
        ...


@dataclass(frozen=True)
class RouterMethod(ABC):
    """A way to tell tasks apart; its fields are its settings.

    ``paper`` says where it was published; ``soft`` whether the states of all likely tasks answer together, weighed by
    the posterior that its router gives; ``calibrates`` whether a temperature is fitted for it: then its router has
    ``scores``, the statistics that it reads have ``without``, and `fitted` takes the temperature;
    ``usual_temperature`` is the one to use where all kept rows are routed right, so that none can be fitted.
    """

    paper: ClassVar[str | None] = None
    soft: ClassVar[bool] = False
    calibrates: ClassVar[bool] = False
    usual_temperature: ClassVar[float] = 1.0

    _: KW_ONLY
    answers: Literal["hard", "soft"] = setting(
        "hard", "Answer by the likeliest task, or soft: by the marginal over the tasks that a text may belong to."
    )

    @property
    @abstractmethod
    def reads(self) -> type[Kept]:
        """The kind of statistics that `router` wants of each task."""

    @abstractmethod
    def router(self, statistics: Sequence[Any]) -> Router:
        """The router over some tasks.

        Args:
            statistics: Of each task, in the order of the sequence; may be read whenever one is looked at.
        """

    @abstractmethod
    def from_samples(self, samples: Query, layers: Sequence[int], clusters: int, seed: int) -> Kept:
        """Statistics of a task that kept none that would do, from the samples that the bank keeps.

        Args:
            samples: The task's samples.
            layers: The layers whose features are kept for routing.
            clusters: Centroids that the kept statistics were asked to have.
            seed: Of everything that is fitted.
        """

    def lacks(self, clusters: int, read: Callable[[], Any]) -> str:
        """What of the kept statistics does not do, in words that follow "keeps"; empty where they do.

        Args:
            clusters: Centroids that they were asked to have.
            read: Reads them.
        """
        return ""

    def fitted(self, found: Mapping[str, Any]) -> Self:
        """The method with what a composition found out when it was made; see `Routed.fit`."""
        return self

    def identity(self) -> Any:
        """A JSON value of the settings that change a route; None where no setting does."""
        return None


@dataclass(frozen=True)
class LayerMethod(RouterMethod):
    """A way to tell tasks apart by features of one layer."""

    layer: int = setting(LAST, "Layer whose features are looked at, the lowest is 1; 0: the last hidden state.", ge=0)

    @abstractmethod
    def build(self, statistics: Sequence[TaskStatistics]) -> FeatureRouter:
        """The router over some tasks; arguments as in `router`."""

    @property
    def reads(self) -> type[Kept]:
        """What the task keeps of its last hidden state, or of lower layers."""
        return Evidence if self.layer else TaskStatistics

    def router(self, statistics: Sequence[Any]) -> Router:
        """What `build` makes, for this layer of texts."""
        if self.layer:
            statistics = StoredStatistics([partial(self._of_layer, statistics, k) for k in range(len(statistics))])
        return _OnLayer(self.build(statistics), self.layer)

    def _of_layer(self, statistics: Sequence[Evidence], task: int) -> TaskStatistics:
        one = statistics[task].layers[self.layer]
        return TaskStatistics(one.centroids, one.mean, one.scatter, one.n)

    def from_samples(self, samples: Query, layers: Sequence[int], clusters: int, seed: int) -> Kept:
        """Of this layer alone."""
        if self.layer:
            return Evidence.fit(samples, (self.layer,), clusters, seed)
        return fit_statistics(samples.features((LAST,))[0], clusters, seed)

    def lacks(self, clusters: int, read: Callable[[], Any]) -> str:
        """The layer may not be among those that are kept."""
        return f"nothing of layer {self.layer}" if self.layer and self.layer not in read().layers else ""


class _OnLayer:
    """A router by features, asked about texts."""

    def __init__(self, router: FeatureRouter, layer: int) -> None:
        self._router = router
        self._layer = layer

    def rank(self, query: Query) -> Ranked:
        """By the features of the layer."""
        return self._router.rank(query.features((self._layer,))[0])
