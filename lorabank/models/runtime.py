"""A base model with all adapters and heads of a bank, answering texts in any state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabank.core.lora import AdapterStack, LoraFactors
from lorabank.models.encoding import EncodedTexts, encode_texts, length_batches, pad_batch
from lorabank.models.features import extract_features
from lorabank.models.heads import Head, HeadSelection, switch_heads
from lorabank.models.loading import LoadedBase
from lorabank.models.mixture import Mixture
from lorabank.models.selector import Selector


@dataclass(frozen=True)
class Plan:
    """The state in which some texts are answered; exactly one of the first three is given.

    Attributes:
        weights: Weights over the stack's adapters, float32 ``[K]`` for all texts or ``[n, K]``, one row per text.
        factors: One adapter that answers alone (a compressed composition).
        selector: A learned selector over ``members``, names of adapters in the stack.
        route: For a routed state the member that each text went to, int64 ``[n]``.
    """

    weights: NDArray[np.float32] | None = None
    factors: LoraFactors | None = None
    selector: Selector | None = None
    members: tuple[str, ...] = ()
    route: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Answers:
    """What a model said: for each of n texts the index of its label in its head, and that label's probability."""

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]


class Runtime:
    """One loaded base, its adapters as a mixture and its heads behind one switch.

    Args:
        base: The loaded base; its model is changed in place.
        stack: Every adapter that may answer.
        heads: Every head, in the order in which they are asked for.
        max_length: Tokens of a text.
        batch_size: Texts of a forward pass.
    """

    def __init__(
        self, base: LoadedBase, stack: AdapterStack, heads: Sequence[Head], *, max_length: int, batch_size: int
    ) -> None:
        self.base = base
        self.stack = stack
        self.max_length = max_length
        self.batch_size = batch_size
        self.mixture = Mixture(base.model, stack)
        self.heads: HeadSelection = switch_heads(base.model, heads)
        self._encoded: dict[tuple[str, ...], EncodedTexts] = {}
        self._features: dict[tuple[str, ...], NDArray[np.float32]] = {}

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.base.model.device

    def features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Features of the bare base, ``[n, hidden]``; kept, so that the same texts are passed once."""
        key = tuple(texts)
        if key not in self._features:
            with self.mixture.bare():
                self._features[key] = extract_features(
                    self.base.model,
                    self.base.tokenizer,
                    texts,
                    max_length=self.max_length,
                    batch_size=self.batch_size,
                )
        return self._features[key]

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Row numbers and model inputs, in batches of similar length."""
        key = tuple(texts)
        if key not in self._encoded:
            self._encoded[key] = encode_texts(self.base.tokenizer, texts, self.max_length)
        ids = self._encoded[key].ids
        for rows in length_batches([len(row) for row in ids], self.batch_size):
            padded = pad_batch(self.base.tokenizer, [ids[i] for i in rows])
            yield rows, {name: tensor.to(self.device) for name, tensor in padded.items()}

    def inputs(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Model inputs of one batch, in the order given."""
        ids = encode_texts(self.base.tokenizer, texts, self.max_length).ids
        return {name: tensor.to(self.device) for name, tensor in pad_batch(self.base.tokenizer, ids).items()}

    def enter(self, plan: Plan) -> None:
        """Put the model into a state that is the same for all texts."""
        if plan.selector is not None:
            self.mixture.attend(plan.selector, self.stack.select(plan.members))
        elif plan.factors is not None:
            self.mixture.merge_adapter(plan.factors)
        elif plan.weights is not None and plan.weights.ndim == 1:
            self.mixture.merge(torch.from_numpy(plan.weights))

    @torch.inference_mode()
    def answer(self, texts: Sequence[str], plan: Plan, heads: int | NDArray[np.int64]) -> Answers:
        """Label texts.

        Args:
            texts: n texts.
            plan: The state; with weights per text it has n rows.
            heads: The head that answers, one for all texts or one per text.

        Returns:
            The most probable label of each text and its probability.
        """
        self.base.model.eval()
        labels = np.zeros(len(texts), np.int64)
        probabilities = np.zeros(len(texts), np.float32)
        self.enter(plan)
        for rows, inputs in self.batches(texts):
            if plan.weights is not None and plan.weights.ndim == 2:
                self.mixture.per_sample(torch.from_numpy(plan.weights[rows]))
            self.heads.select(heads if isinstance(heads, int) else torch.from_numpy(heads[rows]))
            best = self.base.model(**inputs).logits.float().softmax(-1).max(-1)
            labels[rows] = best.indices.cpu().numpy()
            probabilities[rows] = best.values.cpu().numpy()
        return Answers(labels, probabilities)
