r"""One model in any mixture of its adapters: ``y = (1 + sum_k w_k (g_k - 1)) * (W x) + sum_k w_k s_k B_k A_k x + b``.

`Mixture` puts a `MixedLoraLinear` on every adapted module of a model and switches all of them together:

    off          w = 0: the untouched base modules answer, bit for bit
    merged       w constant: a working copy ``W + delta``; a forward pass costs what the base's costs. A quantised
                 weight has none: the adapters that count answer beside it, as for one sample
    per sample   w [n, K]: every sample with its own adapters (`per_sample`), where a model keeps them so
    per text     as per sample, module by module, from a gate that weighs whole texts (`per_text`)
    gated        w from a gate, per module and token
    alone        one adapter that has no w: its own router weighs its parts, per module and token (`Hydra`)

The base weights are never written to, so undoing a merge means dropping the working copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.algebra.factors import DenseDelta, LoraFactors
from lorabank.algebra.stack import AdapterStack, StackedFactors
from lorabank.algebra.states import StateStack
from lorabank.core.commands import Command
from lorabank.core.errors import IncompatibleError
from lorabank.core.shelves import SUMMING
from lorabank.models.bases.kinds.bias import put_in_place, take_out
from lorabank.models.bases.passed_by import check_called
from lorabank.models.bases.sites import Site, WrappedLinear, bias_of, matrix_of, site_of
from lorabank.models.finite import check_tensors
from lorabank.models.gates.base import TokenGate
from lorabank.models.gates.texts import TextWeights
from lorabank.models.mixing.gated import Gated
from lorabank.models.mixing.per_sample import PerSample, Routes, alike
from lorabank.models.mixing.per_text import PerText
from lorabank.models.mixing.places import FIRST, Place, UnplacedError, find_places
from lorabank.models.mixing.reading import Reads
from lorabank.models.tuners.alone import Alone
from lorabank.models.tuners.hydra_form import Hydra, HydraPart


@dataclass(frozen=True)
class Merged:
    """Constant weights: ``matrix [d_out, d_in]`` is the working copy ``W + delta``."""

    matrix: Tensor


class MixedLoraLinear(WrappedLinear):
    """A module that is a site and all adapters on it; ``form`` says how they answer, None means the base.

    Args:
        site: What is adapted; its module is kept as it is.
        factors: All its adapters.
    """

    def __init__(self, site: Site, factors: StackedFactors) -> None:
        super().__init__(site.module)
        self.site = site
        self.name = site.name
        self.factors = factors
        self.form: Merged | PerSample | PerText | Gated | Hydra | None = None
        self.reads = Reads.of(site.module)

    def _matrix(self) -> Tensor | None:
        """A table's weight stays the base's: who reads it makes logits of it, which its adapters do not change."""
        if not isinstance(self.form, Merged) or (self.kind and self.kind.indexed):
            return None
        return self.form.matrix

    def merge(self, weights: Tensor) -> None:
        """Constant ``weights [K]``: build the working copy, or put the adapters beside a quantised weight."""
        if self.site.quantised:
            self.per_sample(weights[None])
        else:
            self.merge_delta(self.factors.delta(weights, matrix_of(self.base)))

    def merge_delta(self, delta: Tensor) -> None:
        """A constant ``delta [d_out, d_in]``: build the working copy, in float32, rounded once.

        Raises:
            IncompatibleError: The weight is quantised.
        """
        self.form = Merged(self.site.merged(delta))

    def merge_factors(self, parts: Sequence[LoraFactors]) -> None:
        """A constant sum of adapters of this module: in the working copy, or beside a quantised weight."""
        if not self.site.quantised:
            self.merge_delta(torch.stack([part.delta(self.name, matrix_of(self.base)) for part in parts]).sum(0))
            return
        named = {str(number): _alone(part, self.name) for number, part in enumerate(parts)}
        like = self.factors.A
        stack = AdapterStack.build(named, device=like.device, dtype=like.dtype).modules[self.name]
        ones = torch.ones(1, len(parts))
        self.form = PerSample(Routes(ones, stack), stack, FIRST, self.reads)

    def per_sample(self, weights: Tensor, routes: Routes | None = None, place: Place | None = FIRST) -> None:
        """``weights [n, K]`` of the batch's samples; ``routes`` are theirs, where a module alike has them already."""
        self.form = PerSample(routes or Routes(weights, self.factors), self.factors, place, self.reads)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., d_in]`` to ``[..., d_out]``."""
        self._mark_called()
        form = self.form
        kind, base = self.kind, self.base
        if isinstance(form, Merged):
            if kind is None or kind.plain:
                return F.linear(x, form.matrix, bias_of(base))
            return kind.call(base, x, form.matrix, bias_of(base))
        out: Tensor = base(x)
        if form is None or kind is None or kind.plain:
            return out if form is None else form.add(out, x)
        sums = kind.answer_rows(base, out).contiguous()
        return kind.answer(base, form.add(sums, kind.rows(base, x)))


class Mixture:
    """Every adapted module of a model, in one state at a time.

    Args:
        model: Changed in place: adapted modules are wrapped.
        stack: The adapters; device and dtype must be the model's.
    """

    def __init__(self, model: nn.Module, stack: AdapterStack) -> None:
        self.stack = stack
        self._model = model
        self._layers: dict[str, MixedLoraLinear] = {}
        for name, factors in stack.modules.items():
            layer = MixedLoraLinear(site_of(model, name), factors)
            put_in_place(model, name, layer)
            self._layers[name] = layer
        self._alike = list(_same_rows(self._layers.values()))
        self._state: Tensor | None = None
        self._places: dict[str, Place] | None = None
        self._mixes: bool | None = None

    @property
    def layers(self) -> Mapping[str, MixedLoraLinear]:
        """Every adapted module by name."""
        return self._layers

    @property
    def places(self) -> Mapping[str, Place] | None:
        """Where the rows of a batch are in the modules' inputs; None where the model keeps none apart."""
        return self._places if self.mixes else None

    @property
    def looked(self) -> bool:
        """Whether `mixes` is known."""
        return self._mixes is not None

    @property
    def mixes(self) -> bool:
        """Whether each sample of a batch can have its own adapters.

        The model is asked the first time (`find_places`); what was wrongly thought possible may be set to False.
        """
        if self._mixes is None:
            with self.bare():
                self._places = find_places(self._model, self._layers)
            self._mixes = self._places is not None
        return self._mixes

    @mixes.setter
    def mixes(self, mixes: bool) -> None:
        self._mixes = mixes

    def off(self) -> None:
        """The base, bit for bit."""
        for layer in self._layers.values():
            layer.form = None
        self._state = None

    def merge(self, weights: Tensor) -> None:
        """Constant ``weights [K]``; asked twice for the same ones, the working copy stays."""
        if self._state is not None and torch.equal(self._state, weights):
            return
        self.off()
        if bool((weights != 0).any()):
            for layer in self._layers.values():
                layer.merge(weights)
        self._check_merged()
        self._state = weights.clone()

    def merge_sum(self, parts: Iterable[Tensor]) -> None:
        """Constant weights ``[K]`` in parts; between two of them the caller may put other adapters into the stack."""
        self.off()
        deltas: dict[str, Tensor] = {}
        beside: dict[str, list[LoraFactors]] = {}
        for weights in parts:
            for name, layer in self._layers.items():
                if layer.site.quantised:
                    one = AdapterStack(self.stack.names, {name: layer.factors}).combine(weights)
                    beside.setdefault(name, []).extend([one] * bool(one.A))
                    continue
                delta = layer.factors.delta(weights, matrix_of(layer.base))
                deltas[name] = deltas[name].add_(delta) if name in deltas else delta
        for name, delta in deltas.items():
            self._layers[name].merge_delta(delta)
        for name, factors in beside.items():
            if factors:
                self._layers[name].merge_factors(factors)
        self._check_merged()

    def merge_adapter(self, factors: LoraFactors) -> None:
        """One adapter that is not in the stack, on modules that are."""
        self.off()
        for name in factors.A:
            self._layers[name].merge_factors([factors])
        self._check_merged()

    def merge_dense(self, dense: DenseDelta) -> None:
        """Delta weights of full rank, on modules that are in the stack.

        Raises:
            IncompatibleError: A weight is quantised.
        """
        self.off()
        for name, delta in dense.delta.items():
            self._layers[name].merge_delta(delta)
        self._check_merged()

    def answer_alone(self, adapter: Alone) -> None:
        """An adapter that has no factors, on modules that are in the stack.

        Raises:
            IncompatibleError: It has delta weights, and a weight is quantised; or it is not of this base's shapes.
        """
        if isinstance(adapter, DenseDelta):
            self.merge_dense(adapter)
            return
        self.off()
        parts: dict[str, list[HydraPart]] = {}
        for name, factors in adapter.items():
            site = site_of(self._model, name)
            if (len(factors.B), factors.A.shape[1]) != (site.d_out, site.d_in):
                raise IncompatibleError(
                    f"the adapter is not of this base model: {name} is {site.d_out} x {site.d_in}, and the adapter's "
                    f"part of it {len(factors.B)} x {factors.A.shape[1]}",
                    unchanged="nothing was computed",
                )
            own = factors.to(self._layers[site.module_name].factors.A)
            parts.setdefault(site.module_name, []).append(HydraPart(own, site.rows))
        for module, own_parts in parts.items():
            self._layers[module].form = Hydra(own_parts)

    def base_weight(self, module: str) -> Tensor:
        """The untouched base's weight ``[d_out, d_in]`` of a module that is in the stack."""
        return self._layers[module].site.weight().detach()

    def per_sample(self, weights: Tensor) -> None:
        """``weights [n, K]``, one row for each sample of the batch; asked twice for the same ones, they stay.

        Raises:
            UnplacedError: The samples are in several states, and the model does not keep them apart (``mixes``).
        """
        if self._state is not None and torch.equal(self._state, weights):
            return
        if not (alike(weights) or self.mixes):
            raise UnplacedError(f"{type(self._model).__name__} does not keep the samples of a batch apart")
        self.off()
        places = self._places or {}
        for layers in self._alike:
            routes = Routes(weights, layers[0].factors)
            for layer in layers:
                layer.per_sample(weights, routes, places.get(layer.name))
        self._state = weights.clone()

    def attend(self, gate: TokenGate, members: StateStack) -> None:
        """A gate over states of some of the stack's adapters, token by token."""
        self.off()
        answering = gate.over(members)
        for name in answering.stack.modules:
            layer = self._layers[name]
            layer.form = Gated(gate, name, answering, layer.reads)

    def per_text(self, members: StateStack, weights: Mapping[str, TextWeights]) -> None:
        """Weights of the texts of a batch, by module; gradients reach them.

        Args:
            members: The states that were weighed.
            weights: By module; of one text where all rows of the batch are that text's.

        Raises:
            UnplacedError: There are several texts, and the model does not keep them apart (``mixes``).
        """
        several = any(len(own.rows) > 1 for own in weights.values())
        places = (self.places or {}) if several else {}
        if several and not places:
            raise UnplacedError(f"{type(self._model).__name__} does not keep the samples of a batch apart")
        self.off()
        for name, own in weights.items():
            layer = self._layers[name]
            layer.form = PerText(own, members.factors(name), places.get(name), layer.reads)

    def check_called(self) -> None:
        """Refuse adapters that the passes so far went by: a merged weight can be read, another form must be called.

        Raises:
            IncompatibleError: The model's code computes with the weight of an adapted module and does not call it.
        """
        mixed = {n: layer for n, layer in self._layers.items() if not isinstance(layer.form, Merged | None)}
        changing = {n: layer for n, layer in mixed.items() if layer.called or _changes(layer)}
        hint = "use a composition that has one state for all texts"
        check_called(changing, hint=hint, commands=[Command("compose", "--mode", SUMMING)])

    @contextmanager
    def bare(self) -> Iterator[None]:
        """The base for the length of a block (features of the frozen base); the state comes back afterwards."""
        kept = {name: layer.form for name, layer in self._layers.items()}
        state = self._state
        self.off()
        try:
            yield
        finally:
            for name, layer in self._layers.items():
                layer.form = kept[name]
            self._state = state

    def detach(self) -> None:
        """Put the original modules back."""
        for name, layer in self._layers.items():
            take_out(self._model, name, layer.base)
        self._layers, self._alike = {}, []

    def _check_merged(self) -> None:
        merged = {name: layer.form.matrix for name, layer in self._layers.items() if isinstance(layer.form, Merged)}
        check_tensors(merged, "the merged weights of")


def _alone(factors: LoraFactors, module: str) -> LoraFactors:
    """What an adapter does to one module."""
    gain = {module: factors.gain[module]} if module in factors.gain else {}
    return LoraFactors(
        {module: factors.A[module]}, {module: factors.B[module]}, {module: factors.scaling[module]}, gain
    )


def _changes(layer: MixedLoraLinear) -> bool:
    """Whether any adapter changes what the module answers."""
    factors = layer.factors
    return isinstance(layer.form, Hydra) or factors.gain is not None or bool(factors.B.any())


def _same_rows(layers: Iterable[MixedLoraLinear]) -> Iterable[list[MixedLoraLinear]]:
    """The layers in groups of equal shape and of rows that belong to the same adapters with the same scaling."""
    groups: dict[object, list[MixedLoraLinear]] = {}
    for layer in layers:
        factors = layer.factors
        size = factors.A.shape[1] + factors.B.shape[0]
        groups.setdefault((size, *factors.owner.tolist(), *factors.scale.tolist()), []).append(layer)
    return groups.values()
