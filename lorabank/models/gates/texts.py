"""Gates that give each text one vector of weights per module, from what the bare base makes of the text.

The base reads the text once, as a router does: without a prompt template, since the task is not known whose template
it would be. What a gate reads of that pass (`TextGate.reads`) is computed before the text is answered, and its weights
are constants while it is answered: labels behind a shared prefix, generation and caches of keys and values work as
with weights that a router gave. While a gate learns, the same facts serve every step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lorabank.algebra.states import StateStack
from lorabank.models.gates.base import Gate

Read = Literal["inputs", "ranks", "hidden", "embedding", "posterior"]
"""What a gate can read of a text; see `TextFacts`."""


@dataclass(frozen=True)
class TextFacts:
    """What the bare base makes of n texts, float32; only what a gate reads is there.

    Attributes:
        inputs: By module the mean ``[n, d_in]`` of its input over the text's tokens; 0 of a module that the pass over
            the text alone does not reach, such as an encoder-decoder's decoder.
        ranks: By module that mean times the stacked A, ``[n, R]``.
        outputs: By module W times that mean, ``[n, d_out]``, where an adapter has a row gain.
        hidden: Mean of the last hidden state, ``[n, width]``.
        embedding: The largest of each entry of the input embeddings over the text's tokens, ``[n, width]``.
        posterior: Log of a router's probability of each state, ``[n, K]``.
    """

    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    ranks: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    hidden: Tensor | None = None
    embedding: Tensor | None = None
    posterior: Tensor | None = None

    def take(self, rows: Sequence[int]) -> TextFacts:
        """The facts of some texts."""
        index = list(rows)

        def of(part: Tensor | None) -> Tensor | None:
            return None if part is None else part[index]

        def by_module(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {module: means[index] for module, means in part.items()}

        return TextFacts(
            inputs=by_module(self.inputs),
            ranks=by_module(self.ranks),
            outputs=by_module(self.outputs),
            hidden=of(self.hidden),
            embedding=of(self.embedding),
            posterior=of(self.posterior),
        )


@dataclass(frozen=True)
class TextWeights:
    """One module's weights of n texts.

    Attributes:
        rows: ``[n, R]`` over the rows of the stacked factors, scaling included.
        adapters: ``[n, adapters]`` of the stack, by which row gains count.
    """

    rows: Tensor
    adapters: Tensor

    def take(self, rows: Sequence[int]) -> TextWeights:
        """The weights of some texts."""
        return TextWeights(self.rows[list(rows)], self.adapters[list(rows)])


class TextGate(Gate, ABC):
    """One vector of weights for each text and module."""

    reads: ClassVar[frozenset[Read]] = frozenset()

    def place(self, texts: TextFacts, of: Tensor) -> None:
        """Let the parameters start where the kept texts are, before the first step; by default they stay.

        Args:
            texts: The kept texts of all members.
            of: int64 ``[n]``, each text's member.
        """

    @abstractmethod
    def weights(self, module: str, members: StateStack, texts: TextFacts) -> Tensor:
        """``[n, K + 1]`` over the zero adapter, first, and the members.

        Args:
            module: Name of the adapted module.
            members: The states that compete.
            texts: What the gate reads of n texts.
        """

    def mixed(self, module: str, members: StateStack, texts: TextFacts) -> TextWeights:
        """The weights as weights over the module's rows and adapters, with their graph."""
        weights = self.weights(module, members, texts)
        self.note(weights)
        adapters = weights[:, 1:] @ members.matrix.to(weights)
        return TextWeights(members.factors(module).row_weights(adapters), adapters)

    def mix(self, members: StateStack, texts: TextFacts) -> dict[str, TextWeights]:
        """By module, what `mixed` gives."""
        return {module: self.mixed(module, members, texts) for module in members.stack.modules}


def with_zero(weights: Tensor) -> Tensor:
    """``[n, K]`` as ``[n, K + 1]``, nothing for the zero adapter."""
    return torch.nn.functional.pad(weights, (1, 0))


def means_by_state(rows: Tensor, of: Tensor, count: int) -> Tensor:
    """``rows [n, d]`` of texts that belong to the states ``of [n]``: the mean of each state's, ``[K, d]``."""
    return torch.stack([rows[(of == k).to(rows.device)].mean(0) for k in range(count)])
