"""What the bare base makes of a text before the text is answered, as gates of whole texts read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.algebra.states import StateStack
from lorabank.core.errors import IncompatibleError
from lorabank.models.bases.body import encoder_of
from lorabank.models.bases.sites import kind_of, matrix_of, rows_of, wrapped_by
from lorabank.models.gates.texts import Read, TextFacts
from lorabank.models.mixing.places import Place
from lorabank.models.tasks.batches import takes
from lorabank.models.tasks.encoding import encode_texts, pad_batch
from lorabank.models.tasks.padding import row_batches
from lorabank.models.tasks.transfer import sent

if TYPE_CHECKING:
    from lorabank.models.bases.loading import LoadedBase


class FirstPass:
    """Reads texts with the bare base.

    Args:
        base: The base, with no adapter active while texts are read.
        layers: Every adapted module by name.
        places: Where the rows of a batch are in the modules' inputs; None where the model keeps no rows apart: then
            every text is read by itself.
    """

    def __init__(self, base: LoadedBase, layers: Mapping[str, Any], places: Mapping[str, Place] | None) -> None:
        self._base, self._layers, self._places = base, layers, places

    @torch.no_grad()
    def read(
        self, texts: Sequence[str], members: StateStack, reads: frozenset[Read], *, max_length: int, batch_size: int
    ) -> TextFacts:
        """What some gate reads of texts; a text without any token gives 0.

        Args:
            texts: n texts.
            members: The states that will be weighed.
            reads: What is wanted; the router's posterior is not made here.
            max_length: Tokens of a text; longer ones are cut.
            batch_size: Texts of a forward pass.

        Raises:
            IncompatibleError: A hidden state or an embedding is wanted, and the body gives none of every token.
        """
        by_module = bool(reads & {"inputs", "ranks"})
        if not (by_module or reads & {"hidden", "embedding"}):
            return TextFacts()
        model, tokenizer = self._base.model, self._base.tokenizer
        training = model.training
        model.train(False)
        ids = encode_texts(tokenizer, texts, max_length).ids
        size = 1 if self._places is None else batch_size
        parts: list[TextFacts] = []
        order: list[int] = []
        for batch in row_batches(model, ids.lengths, size):
            inputs = sent(pad_batch(tokenizer, [ids[i] for i in batch]), model.device)
            if not int(inputs["attention_mask"].sum()):
                continue
            means, hidden, embedding = self._pass(inputs, by_module=by_module)
            parts.append(self._facts(members, reads, means, hidden, embedding, len(batch)))
            order += batch
        model.train(training)
        return _joined(parts, order, len(texts))

    def _pass(
        self, inputs: Mapping[str, Tensor], *, by_module: bool
    ) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None]:
        """Over a batch's tokens: means of modules' inputs and of the last hidden state, and the largest embeddings."""
        mask = inputs["attention_mask"].bool()
        encoder = encoder_of(self._base.model)
        uncached = {"use_cache": False} if takes(encoder, "use_cache") else {}
        embeddings = {"embedding": encoder.get_input_embeddings()}
        with _caught(self._layers if by_module else {}, "input") as read, _caught(embeddings, "output") as embedded:
            output = encoder(input_ids=inputs["input_ids"], attention_mask=mask.long(), **uncached)
        places = self._places or {}
        means = {name: _mean(calls, mask, places.get(name), self._layers[name]) for name, calls in read.items()}
        hidden: Tensor | None = getattr(output, "last_hidden_state", None)
        if hidden is not None:
            hidden = _mean([hidden], mask, Place()) if hidden.shape[:2] == mask.shape else None
        calls = embedded["embedding"]
        return means, hidden, _largest(calls[0], mask) if calls and calls[0].shape[:2] == mask.shape else None

    def _facts(
        self,
        members: StateStack,
        reads: frozenset[Read],
        means: Mapping[str, Tensor],
        hidden: Tensor | None,
        embedding: Tensor | None,
        count: int,
    ) -> TextFacts:
        for read, found, what in (("hidden", hidden, "last hidden state"), ("embedding", embedding, "embedding")):
            if read in reads and found is None:
                raise IncompatibleError(
                    f"the body of {type(self._base.model).__name__} gives no {what} of every token",
                    hint="choose a gate that does not read it",
                    unchanged="nothing was changed",
                )
        modules = members.stack.modules if reads & {"inputs", "ranks"} else {}
        x = {
            name: means[name] if name in means else torch.zeros(count, factors.A.shape[1], device=factors.A.device)
            for name, factors in modules.items()
        }
        ranked = modules if "ranks" in reads else {}
        return TextFacts(
            inputs=x if "inputs" in reads else {},
            ranks={name: F.linear(x[name], factors.A.float()) for name, factors in ranked.items()},
            outputs={
                name: F.linear(x[name], matrix_of(self._layers[name].base).float())
                for name, factors in ranked.items()
                if factors.gain is not None
            },
            hidden=hidden if "hidden" in reads else None,
            embedding=embedding if "embedding" in reads else None,
        )


@contextmanager
def _caught(modules: Mapping[str, nn.Module], what: str) -> Iterator[dict[str, list[Tensor]]]:
    """Collects the input, or the output, of every call of some modules during a block."""
    found: dict[str, list[Tensor]] = defaultdict(list)

    def catch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found[name].append(args[0] if what == "input" else output)

        return hook

    hooks = [module.register_forward_hook(catch(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _mean(calls: Sequence[Tensor], mask: Tensor, place: Place | None, module: nn.Module | None = None) -> Tensor:
    """Mean over each text's tokens, float32 ``[n, d]``, and over the calls of a module that is called several times.

    Padding is left out where the tokens are those of the mask ``[n, s]``; a module that reads one vector of each text,
    or tokens in another order, has the mean over all that it reads. A table reads tokens: the mean is the share of
    each of them.
    """
    means = []
    for x in calls if module is None else [rows_of(module, x) for x in calls]:
        rows = x.reshape(1, -1, x.shape[-1]) if len(mask) == 1 else (place or Place()).by_rows(x, len(mask))
        real = mask if rows.shape[:2] == mask.shape else torch.ones(rows.shape[:2], dtype=torch.bool, device=x.device)
        count = real.sum(1, keepdim=True).clamp(min=1)
        kind = None if module is None else kind_of(module)
        if module is not None and kind is not None and kind.indexed:
            means.append(kind.outer(wrapped_by(module), (real / count).float().unsqueeze(-1), rows).squeeze(1))
            continue
        kept = rows.float().masked_fill(~real[..., None], 0.0)
        means.append(kept.sum(1) / count)
    return torch.stack(means).mean(0)


def _largest(x: Tensor, mask: Tensor) -> Tensor:
    """The largest of each entry over a text's tokens, float32 ``[n, d]``; 0 of a text without tokens."""
    kept = x.float().masked_fill(~mask[..., None], -torch.inf).amax(1)
    return kept.masked_fill(~mask.any(1, keepdim=True), 0.0)


def _joined(parts: Sequence[TextFacts], order: Sequence[int], count: int) -> TextFacts:
    """The facts of all batches, in the texts' order; 0 of texts that were not read."""

    def put(found: Sequence[Tensor]) -> Tensor:
        every = torch.cat(list(found))
        whole = every.new_zeros(count, every.shape[1])
        whole[list(order)] = every
        return whole

    def named(maps: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: put([part[name] for part in maps]) for name in maps[0]}

    if not parts:
        return TextFacts()
    hidden, embedding = ([getattr(part, name) for part in parts] for name in ("hidden", "embedding"))
    return TextFacts(
        inputs=named([part.inputs for part in parts]),
        ranks=named([part.ranks for part in parts]),
        outputs=named([part.outputs for part in parts]),
        hidden=put(hidden) if hidden[0] is not None else None,
        embedding=put(embedding) if embedding[0] is not None else None,
    )
