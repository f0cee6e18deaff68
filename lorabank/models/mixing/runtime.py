"""A base model with all adapters of a bank, answering texts in any state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabank.algebra.factors import DenseDelta, LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.algebra.states import StateStack
from lorabank.core.errors import IncompatibleError
from lorabank.models.answering.base import Answerer, Answers
from lorabank.models.answering.generating import reads_on
from lorabank.models.bases.loading import LoadedBase
from lorabank.models.finite import explained
from lorabank.models.gates.base import TokenGate
from lorabank.models.gates.texts import Read, TextFacts, TextGate, TextWeights
from lorabank.models.mixing.features import LAST, extract_layers, routing_layers
from lorabank.models.mixing.first_pass import FirstPass
from lorabank.models.mixing.kept_features import KeptFeatures
from lorabank.models.mixing.mixture import Mixture
from lorabank.models.mixing.places import UnplacedError
from lorabank.models.mixing.prefix import FrozenPrefix
from lorabank.models.mixing.resident_stack import ResidentStack
from lorabank.models.mixing.row_prefix import RowPrefix
from lorabank.models.tasks.batches import Enter
from lorabank.models.tasks.padding import padding_of
from lorabank.models.tuners.alone import Alone, AloneAdapters, BaseWeight

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """The state in which some texts are answered; exactly one of the first five is given.

    Attributes:
        weights: Weights over the stack's adapters, float32 ``[K]`` for all texts or ``[n, K]``, one row per text.
        factors: One adapter that answers alone (a compressed composition).
        dense: Delta weights of full rank that answer alone.
        gate: A gate over ``states`` that weighs every token.
        texts: What a gate of whole texts gave for ``states``: by module the weights of n texts.
        states: The members that a gate weighs: each the names of the adapters in the stack that it sums.
        route: For a routed state the member that each text went to, int64 ``[n]``.
        margin: How clearly, float64 ``[n]``: its score above the second best member's.
        posterior: How probable each of the K known members is, float64 ``[n, K]``, where a router says so.
        own_states: Where answers are soft, known members' own states over the stack, float32 ``[members, K]``.
    """

    weights: NDArray[np.float32] | None = None
    factors: LoraFactors | None = None
    dense: DenseDelta | None = None
    gate: TokenGate | None = None
    texts: Mapping[str, TextWeights] | None = None
    states: tuple[tuple[str, ...], ...] = ()
    route: NDArray[np.int64] | None = None
    margin: NDArray[np.float64] | None = None
    posterior: NDArray[np.float64] | None = None
    own_states: NDArray[np.float32] | None = None


def _explained(method: Callable[..., T]) -> Callable[..., T]:
    """A method that names the base's broken tensor where what it computed is not finite because of one."""

    @wraps(method)
    def run(runtime: Runtime, *args: Any, **kwargs: Any) -> T:
        with explained(runtime.base.model):
            return method(runtime, *args, **kwargs)

    return run


class Runtime:
    """One loaded base, its adapters as a mixture and the forms in which its tasks are asked.

    Args:
        base: The loaded base; its model is changed in place.
        stack: Every adapter that may answer, in memory or read when it is needed.
        answerer: Asks the model, made for the same base.
        batch_size: Texts of a forward pass for features.
        reuse_prefix: Keep what the layers below all adapters give, for texts that are answered in several states;
            else it is kept from a text's feature to its answer.
        alone: Adapter of no factors to what reads it: see `AloneAdapters`.
        notice: Gets what the user should know of how texts are answered.
    """

    def __init__(
        self,
        base: LoadedBase,
        stack: AdapterStack | ResidentStack,
        answerer: Answerer,
        *,
        batch_size: int,
        reuse_prefix: bool = False,
        alone: Mapping[str, Callable[[BaseWeight], Alone]] | None = None,
        notice: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.base, self.answerer, self.batch_size = base, answerer, batch_size
        self.stack = ResidentStack.whole(stack) if isinstance(stack, AdapterStack) else stack
        self.mixture = Mixture(base.model, self.stack.slots)
        self.alone = AloneAdapters(self.stack.names, alone or {}, self.mixture.base_weight)
        self.notice, self._told, self._features = notice, False, KeptFeatures()
        self._prefix = None if reuse_prefix else RowPrefix(base.model, stack.modules)
        if reuse_prefix:
            FrozenPrefix(base.model, stack.modules)
        base.model.eval()  # also what was put into it above

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.base.model.device

    def features(self, texts: Sequence[str], max_length: int) -> NDArray[np.float32]:
        """Features of the bare base's last hidden state, ``[n, hidden]``; see `layer_features`."""
        return self.layer_features(texts, max_length, (LAST,))[0]

    @_explained
    def layer_features(
        self, texts: Sequence[str], max_length: int, layers: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        """Features of the bare base, of each layer ``[n, width]``; see `extract_layers`.

        Each text passes through the base once while its features are cached, whichever list it comes in.
        """

        def extract(new: Sequence[str]) -> list[NDArray[np.float32]]:
            with self.mixture.bare(), self._prefix.keeping() if self._prefix else nullcontext():
                return extract_layers(
                    self.base.model,
                    self.base.tokenizer,
                    new,
                    layers,
                    max_length=max_length,
                    batch_size=self.batch_size,
                    whole=self._prefix is not None and not self._prefix.settled,
                )

        return self._features.of(texts, max_length, layers, extract)

    @property
    def routing_layers(self) -> tuple[int, ...]:
        """The layers whose features are kept for routing."""
        with self.mixture.bare():
            return routing_layers(self.base.model, self.base.tokenizer)

    def forget_features(self) -> None:
        """Keep no features of texts that will not come again."""
        self._features.forget()
        if self._prefix:
            self._prefix.forget()

    def states(self, states: Sequence[Sequence[str]]) -> StateStack:
        """Members of a mixture, each given by the names of the adapters that it sums."""
        return StateStack.build(states, self.stack.select)

    @_explained
    def first_pass(
        self, texts: Sequence[str], members: StateStack, reads: frozenset[Read], max_length: int
    ) -> TextFacts:
        """What a gate of whole texts reads of texts, by the bare base; see `FirstPass.read`."""
        places = self.mixture.places if reads & {"inputs", "ranks"} else {}
        with self.mixture.bare(), self._prefix.keeping() if self._prefix else nullcontext():
            reader = FirstPass(self.base, self.mixture.layers, places)
            return reader.read(texts, members, reads, max_length=max_length, batch_size=self.batch_size)

    def weighing(self, gate: TextGate, members: StateStack, texts: TextFacts) -> Enter:
        """Puts the model into the state of a batch of texts under a gate that learns, given as rows of the facts."""

        def enter(rows: Sequence[int]) -> None:
            self.mixture.per_text(members, gate.mix(members, texts.take(rows)))

        return enter

    @property
    def keeps_apart(self) -> bool:
        """Whether the texts of any batch share one pass of the model and can be weighed one by one in it."""
        self.measure_padding(2)
        padding = padding_of(self.base.model)
        return padding.beside and padding.right and self.mixture.mixes

    def enter(self, plan: Plan) -> None:
        """Put the model into a state that is the same for all texts."""
        if plan.gate is not None:
            self.mixture.attend(plan.gate, self.states(plan.states))
        elif plan.factors is not None:
            self.mixture.merge_adapter(plan.factors)
        elif plan.dense is not None:
            self.mixture.merge_dense(plan.dense)
        elif plan.weights is not None and plan.weights.ndim == 1:
            weights = torch.from_numpy(plan.weights)
            if self.alone.among(plan.weights):
                self.mixture.answer_alone(self.alone.adapter(plan.weights))
            elif self.stack.all_fit:
                self.mixture.merge(self.stack.place(weights))
            else:
                self.mixture.merge_sum(self.stack.parts(weights))

    @_explained
    @torch.inference_mode()
    def answer(self, texts: Sequence[str], plan: Plan, heads: int | NDArray[np.int64]) -> Answers:
        """Answer texts.

        Args:
            texts: n texts.
            plan: The state; with weights per text it has n rows.
            heads: Whose form (and head) answers, one for all texts or one per text.
        """
        every = _each(heads, texts)

        def ask(part: Plan, rows: NDArray[np.int64]) -> Answers:
            asked = [texts[i] for i in rows]
            return self.answerer.answer(asked, every[rows], self._entering(part), shared=not _per_text(part))

        found, order = self._in_states(plan, len(texts), ask)
        said = [word for answers in found for word in answers.said]
        return Answers(tuple(said[i] for i in order), np.concatenate([part.probabilities for part in found])[order])

    @_explained
    @torch.inference_mode()
    def label_shares(self, texts: Sequence[str], plan: Plan, heads: NDArray[np.int64]) -> list[NDArray[np.float64]]:
        """Of each text the probability ``[labels]`` of each label of its form; arguments as in `answer`."""

        def ask(part: Plan, rows: NDArray[np.int64]) -> list[NDArray[np.float64]]:
            asked = [texts[i] for i in rows]
            return self.answerer.label_shares(asked, heads[rows], self._entering(part), shared=not _per_text(part))

        found, order = self._in_states(plan, len(texts), ask)
        shares = [one for part in found for one in part]
        return [shares[i] for i in order]

    @_explained
    @torch.inference_mode()
    def log_likelihoods(
        self, texts: Sequence[str], targets: Sequence[str], plan: Plan, heads: int | NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Log-likelihood of each target after its text, and its tokens; arguments as in `answer`."""
        every = _each(heads, texts)

        def ask(part: Plan, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
            asked, wanted = [texts[i] for i in rows], [targets[i] for i in rows]
            return self.answerer.log_likelihoods(asked, wanted, every[rows], self._entering(part))

        found, order = self._in_states(plan, len(texts), ask)
        likelihoods, tokens = (np.concatenate(parts)[order] for parts in zip(*found, strict=True))
        return likelihoods, tokens

    @_explained
    @torch.inference_mode()
    def passes(
        self, plan: Plan, count: int, ask: Callable[[NDArray[np.int64], Enter], T]
    ) -> list[tuple[NDArray[np.int64], T]]:
        """Ask the model itself for the rows of a plan.

        Args:
            plan: The state; with weights per text it has ``count`` rows.
            count: How many rows there are.
            ask: Called with the numbers of rows that may be asked together, and with what is to be called before every
                forward pass with the places of its rows among them.

        Returns:
            The rows of each group, and what was found for them.
        """

        def own(part: Plan, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], T]:
            return rows, ask(rows, self._entering(part))

        return self._in_states(plan, count, own)[0]

    def loss(
        self,
        texts: Sequence[str],
        targets: Sequence[str],
        heads: int | NDArray[np.int64],
        enter: Enter = lambda rows: None,
    ) -> Tensor:
        """The training loss of one batch, with its graph, in the state that was entered or ``enter`` enters."""
        self.measure_padding(len(texts))
        return self.answerer.loss(texts, targets, _each(heads, texts), enter)

    def predictions(self, text: str, target: str, head: int) -> tuple[Tensor, Tensor]:
        """Logits ``[n, choices]`` and labels ``[n]`` of one row in the state that was entered; see `Answerer`."""
        return self.answerer.predictions(text, target, head)

    def _in_states(
        self, plan: Plan, count: int, ask: Callable[[Plan, NDArray[np.int64]], T]
    ) -> tuple[list[T], NDArray[np.int64]]:
        """Ask for the texts in groups, each with its own plan.

        Returns:
            What was found for each group; and for each text its place in them.
        """
        if self.base.model.training:  # setting it again takes as long as 2 % of a short text's pass
            self.base.model.eval()
        self.measure_padding(count)
        found: list[T] = []
        done: list[NDArray[np.int64]] = []
        waiting = self._groups(plan, np.arange(count))
        while waiting:
            part, rows = waiting.pop(0)
            self.enter(part)
            try:
                answers = ask(part, rows)
                self.mixture.check_called()
            except (UnplacedError, IncompatibleError):
                if not _per_text(part):
                    raise
                self.mixture.mixes = False  # merged, every state is answered
                waiting = [*self._groups(part, rows), *waiting]
            else:
                found.append(answers)
                done.append(rows)
        return found, np.argsort(np.concatenate(done))

    def _groups(self, plan: Plan, rows: NDArray[np.int64]) -> list[tuple[Plan, NDArray[np.int64]]]:
        """Texts that are answered together: adapters that fit into memory, or one state where the model mixes none.

        Args:
            plan: The rows' plan.
            rows: Numbers of texts.
        """
        if plan.texts is not None:
            together = len(rows) < 2 or self.mixture.mixes
            parts = [np.arange(len(rows))] if together else np.arange(len(rows)).reshape(-1, 1)
            return [(replace(plan, texts=_taken(plan.texts, part.tolist())), rows[part]) for part in parts]
        if plan.weights is None or not _per_text(plan):
            return [(plan, rows)]
        states, weights, rows = self.alone.apart(plan.weights, rows)
        found = [(Plan(weights=state), own) for state, own in states]
        several = bool((weights != weights[:1]).any())
        if (several or self.mixture.looked) and not self.mixture.mixes:
            if several:
                self._tell_apart()
            sums, which = np.unique(weights, axis=0, return_inverse=True)
            return [*found, *((Plan(weights=own), rows[which.reshape(-1) == k]) for k, own in enumerate(sums))]
        waves = self.stack.waves(weights) if len(rows) or not found else ()
        return [*found, *((Plan(weights=weights[wave]), rows[wave]) for wave in waves)]

    def _tell_apart(self) -> None:
        if not self._told:
            self.notice(
                f"texts for different adapters are answered one adapter at a time: {type(self.base.model).__name__} "
                "does not keep the texts of a batch apart"
            )
        self._told = True

    def measure_padding(self, count: int) -> None:
        """Before a state is entered: the adapters of another batch would not fit the rows that are passed for it."""
        if count > 1:
            with self.mixture.bare():
                padding_of(self.base.model)
                if self.answerer.generates:
                    reads_on(self.base.model)

    def _entering(self, plan: Plan) -> Enter:
        """Puts the model into the state of a batch, given as rows of the plan."""
        if plan.texts is not None:
            return self._weighed(plan.texts, self.states(plan.states))
        if plan.weights is None or not _per_text(plan):
            return lambda rows: None
        weights = plan.weights

        def enter(rows: Sequence[int]) -> None:
            moved = self.stack.moved
            try:
                placed = self.stack.place(torch.from_numpy(weights[list(rows)]))
            finally:
                if self.stack.moved != moved:
                    self.mixture.off()  # equal weights over slots may now stand for other adapters
            self.mixture.per_sample(placed)

        return enter

    def _weighed(self, texts: Mapping[str, TextWeights], members: StateStack) -> Enter:
        """As `_entering`, for the weights that a gate gave; rows that are all one text's share its weights."""

        def enter(rows: Sequence[int]) -> None:
            one = len(set(rows)) == 1
            self.mixture.per_text(members, _taken(texts, rows[:1] if one else rows))

        return enter


def _taken(texts: Mapping[str, TextWeights], rows: Sequence[int]) -> dict[str, TextWeights]:
    return {module: weights.take(rows) for module, weights in texts.items()}


def _each(heads: int | NDArray[np.int64], texts: Sequence[str]) -> NDArray[np.int64]:
    return np.full(len(texts), heads, np.int64) if isinstance(heads, int) else heads


def _per_text(plan: Plan) -> bool:
    return plan.texts is not None or (plan.weights is not None and plan.weights.ndim == 2)
