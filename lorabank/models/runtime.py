"""A base model with all adapters of a bank, answering texts in any state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from hashlib import sha256
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabank.core.lora import AdapterStack, LoraFactors
from lorabank.models.answering import Answerer, Answers, Enter
from lorabank.models.features import extract_features
from lorabank.models.finite import explained
from lorabank.models.loading import LoadedBase
from lorabank.models.mixture import Mixture
from lorabank.models.prefix import FrozenPrefix
from lorabank.models.residents import ResidentStack
from lorabank.models.selector import Selector

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """The state in which some texts are answered; exactly one of the first three is given.

    Attributes:
        weights: Weights over the stack's adapters, float32 ``[K]`` for all texts or ``[n, K]``, one row per text.
        factors: One adapter that answers alone (a compressed composition).
        selector: A learned selector over ``members``, names of adapters in the stack.
        route: For a routed state the member that each text went to, int64 ``[n]``.
        margin: How clearly, float64 ``[n]``: its score above the second best member's.
    """

    weights: NDArray[np.float32] | None = None
    factors: LoraFactors | None = None
    selector: Selector | None = None
    members: tuple[str, ...] = ()
    route: NDArray[np.int64] | None = None
    margin: NDArray[np.float64] | None = None


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
        reuse_prefix: Keep what the layers below all adapters give, for texts that are answered in several states.
    """

    def __init__(
        self,
        base: LoadedBase,
        stack: AdapterStack | ResidentStack,
        answerer: Answerer,
        *,
        batch_size: int,
        reuse_prefix: bool = False,
    ) -> None:
        self.base = base
        self.stack = ResidentStack.whole(stack) if isinstance(stack, AdapterStack) else stack
        self.answerer = answerer
        self.batch_size = batch_size
        self.mixture = Mixture(base.model, self.stack.slots)
        if reuse_prefix:
            FrozenPrefix(base.model, stack.modules)
        self._features: dict[tuple[int, tuple[str, ...]], NDArray[np.float32]] = {}
        self._feature: dict[tuple[int, bytes], NDArray[np.float32]] = {}

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.base.model.device

    @_explained
    def features(self, texts: Sequence[str], max_length: int) -> NDArray[np.float32]:
        """Features of the bare base, ``[n, hidden]``.

        A text passes through the base once, in whatever list it comes: the state, the task and the stage that ask for
        its feature change nothing in it.
        """
        listed = max_length, tuple(texts)
        if listed in self._features:
            return self._features[listed]
        keys = [(max_length, sha256(text.encode("utf-8", "surrogatepass")).digest()) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._feature}
        with self.mixture.bare():
            rows = extract_features(
                self.base.model,
                self.base.tokenizer,
                list(new.values()),
                max_length=max_length,
                batch_size=self.batch_size,
            )
        self._feature.update(zip(new, rows, strict=True))
        # Rows are views: only a list that shares texts with another, or with itself, is copied together.
        whole = len(new) == len(keys)
        self._features[listed] = rows if whole else np.stack([self._feature[key] for key in keys])
        return self._features[listed]

    def enter(self, plan: Plan) -> None:
        """Put the model into a state that is the same for all texts."""
        if plan.selector is not None:
            self.mixture.attend(plan.selector, self.stack.select(plan.members))
        elif plan.factors is not None:
            self.mixture.merge_adapter(plan.factors)
        elif plan.weights is not None and plan.weights.ndim == 1:
            weights = torch.from_numpy(plan.weights)
            if self.stack.all_fit:
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
        self.base.model.eval()
        self.enter(plan)
        every, waves = _each(heads, texts), self._waves(plan, texts)
        found = [
            self.answerer.answer(
                [texts[i] for i in rows], every[rows], self._entering(plan, rows), shared=not _per_text(plan)
            )
            for rows in waves
        ]
        said = [word for answers in found for word in answers.said]
        self.mixture.check_called()
        back = np.argsort(np.concatenate(waves))
        probabilities = np.concatenate([answers.probabilities for answers in found])
        return Answers(tuple(said[i] for i in back), probabilities[back])

    @_explained
    @torch.inference_mode()
    def log_likelihoods(
        self, texts: Sequence[str], targets: Sequence[str], plan: Plan, heads: int | NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Log-likelihood of each target after its text, and its tokens; arguments as in `answer`."""
        self.base.model.eval()
        self.enter(plan)
        every, waves = _each(heads, texts), self._waves(plan, texts)
        found = [
            self.answerer.log_likelihoods(
                [texts[i] for i in rows], [targets[i] for i in rows], every[rows], self._entering(plan, rows)
            )
            for rows in waves
        ]
        self.mixture.check_called()
        back = np.argsort(np.concatenate(waves))
        likelihoods, tokens = (np.concatenate(parts)[back] for parts in zip(*found, strict=True))
        return likelihoods, tokens

    def loss(self, texts: Sequence[str], targets: Sequence[str], heads: int | NDArray[np.int64]) -> Tensor:
        """The training loss of one batch in the state that was entered, a scalar with its graph."""
        return self.answerer.loss(texts, targets, _each(heads, texts))

    def _waves(self, plan: Plan, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """The texts in groups whose adapters fit into memory together."""
        if plan.weights is None or not _per_text(plan):
            return [np.arange(len(texts))]
        return self.stack.waves(plan.weights)

    def _entering(self, plan: Plan, wave: NDArray[np.int64]) -> Enter:
        """Puts the model into the state of a batch, given as rows of the wave."""
        if plan.weights is None or not _per_text(plan):
            return lambda rows: None
        weights = plan.weights[wave]

        def enter(rows: Sequence[int]) -> None:
            moved = self.stack.moved
            placed = self.stack.place(torch.from_numpy(weights[list(rows)]))
            if self.stack.moved != moved:
                self.mixture.off()  # equal weights over slots may now stand for other adapters
            self.mixture.per_sample(placed)

        return enter


def _each(heads: int | NDArray[np.int64], texts: Sequence[str]) -> NDArray[np.int64]:
    return np.full(len(texts), heads, np.int64) if isinstance(heads, int) else heads


def _per_text(plan: Plan) -> bool:
    return plan.weights is not None and plan.weights.ndim == 2
