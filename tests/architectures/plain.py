"""What plain transformers answers: one row at a time, without padding and without a cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorabank.algebra.factors import LoraFactors
from lorabank.models.tasks.batches import takes
from tests.architectures import zoo

TEMPLATE = "{text} Answer :"


_PARTS = ("q_proj", "k_proj", "v_proj")
"""Of torch's attention, in the order in which its weight holds them."""


class Plain:
    """A tiny model in plain transformers.

    Args:
        path: Its folder.
        task_type: What it is loaded for.
        labels: What is answered: a head's outputs, or words behind the prompt.
    """

    def __init__(self, path: Path, task_type: str, labels: Sequence[str]) -> None:
        self.task_type, self.labels = task_type, list(labels)
        self.head = task_type == "SEQ_CLS"
        more = {"num_labels": len(labels), "ignore_mismatched_sizes": True} if self.head else {}
        self.model = zoo.AUTO[task_type].from_pretrained(path, **more).eval()
        for module in self.model.modules():
            if isinstance(module, nn.Linear):  # weights of one value in two places (Zamba) get adapters of their own
                module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        # FSMT lets its decoder see what follows when it keeps a cache.
        self._always = {"use_cache": False} if takes(self.model, "use_cache") else {}

    def put_head(self, state: Mapping[str, Tensor]) -> None:
        """Give the model these weights."""
        own = self.model.state_dict()
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)

    def scores(self, text: str) -> Tensor:
        """Log-probability of each label, among all of them."""
        if self.head:
            return self._logits(self._prompt(text)).log_softmax(-1)
        sums = [-self.loss(text, label) * len(self.words(label)) for label in self.labels]
        return torch.stack(sums).log_softmax(-1)

    def loss(self, text: str, label: str) -> Tensor:
        """Mean cross entropy of a row's answer."""
        prompt = self._prompt(text)
        if self.head:
            return F.cross_entropy(self._logits(prompt)[None], torch.tensor([self.labels.index(label)]))
        words = self.words(label)
        if self.task_type == "CAUSAL_LM":
            logits = self._logits([*prompt, *words])[len(prompt) - 1 : -1]
        else:
            logits = self._logits(prompt, decoder_input_ids=torch.tensor([self._shifted(words)]))
        return F.cross_entropy(logits, torch.tensor(words))

    def words(self, label: str) -> list[int]:
        """Token ids of an answer."""
        label = f" {label}" if self.task_type == "CAUSAL_LM" else label
        return [*self.tokenizer(label, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    @torch.no_grad()
    def generate(self, text: str, most: int) -> str:
        """The likeliest word again and again, every one from a whole pass."""
        prompt, said, start = self._prompt(text), [], getattr(self.model.config, "decoder_start_token_id", None)
        while len(said) < most and self.tokenizer.eos_token_id not in said:
            if self.task_type == "CAUSAL_LM":
                logits = self._logits([*prompt, *said])
            else:
                logits = self._logits(prompt, decoder_input_ids=torch.tensor([[start, *said]]))
            said.append(int(logits[-1].argmax()))
        return str(self.tokenizer.decode(said, skip_special_tokens=True))

    def can_generate(self) -> bool:
        """Whether transformers' own loop, with its cache, gets through."""
        try:
            self.model.generate(input_ids=torch.tensor([self._prompt("good film")]), max_new_tokens=4, do_sample=False)
        except Exception:
            return False
        return True

    def parameter(self, name: str) -> tuple[nn.Parameter, int | slice]:
        """The parameter of a weight, and where: an expert's number, a part of torch's attention, or all."""
        stacked, _, last = name.rpartition(".")
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        if last.isdecimal() and stacked in parameters:
            return parameters[stacked], int(last)
        if last in _PARTS and f"{stacked}.in_proj_weight" in parameters:
            fused = parameters[f"{stacked}.in_proj_weight"]
            d, number = len(fused) // 3, _PARTS.index(last)
            return fused, slice(number * d, (number + 1) * d)
        return parameters[f"{name}.weight"], slice(None)

    def as_matrix(self, name: str, kept: Tensor) -> Tensor:
        """What has a weight's layout as a matrix: turned or flattened, and of groups in blocks on the diagonal."""
        module = self._module(name)
        if isinstance(module, nn.Conv1d):
            return torch.block_diag(*kept.flatten(1).chunk(module.groups))
        return kept.T if _transposed(module) else kept

    def _as_kept(self, name: str, matrix: Tensor) -> Tensor:
        """A matrix in its weight's layout."""
        module = self._module(name)
        if isinstance(module, nn.Conv1d):
            rows = zip(matrix.chunk(module.groups), range(module.groups), strict=True)
            blocks = [part.chunk(module.groups, 1)[g] for part, g in rows]
            return torch.cat(blocks).view(module.weight.shape)
        return matrix.T if _transposed(module) else matrix

    def _module(self, name: str) -> nn.Module:
        """A module, or the experts of one of whose matrices it is the name."""
        parent = self.model.get_submodule(name.rpartition(".")[0]) if name.endswith(_PARTS) else None
        if isinstance(parent, nn.MultiheadAttention):
            return parent
        own = self.parameter(name)[1]
        return self.model.get_submodule(name if isinstance(own, slice) else name.rpartition(".")[0].rpartition(".")[0])

    @contextmanager
    def merged(self, adapter: LoraFactors) -> Iterator[None]:
        """The model with an adapter added to its weights."""
        places = {name: self.parameter(name) for name in adapter.A}
        weights = {name: parameter[where] for name, (parameter, where) in places.items()}
        kept = {name: weight.detach().clone() for name, weight in weights.items()}
        with torch.no_grad():
            for name, weight in weights.items():
                weight += self._as_kept(name, adapter.scaling[name] * adapter.B[name] @ adapter.A[name])
            try:
                yield
            finally:
                for name, weight in weights.items():
                    weight.copy_(kept[name])

    def _prompt(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text if self.head else TEMPLATE.replace("{text}", text))["input_ids"]
        return ids

    def _logits(self, ids: list[int], **more: Any) -> Tensor:
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        logits: Tensor = self.model(**inputs, **self._always, **more).logits[0].float()
        return logits

    def _shifted(self, words: list[int]) -> list[int]:
        """What the decoder reads while it says the words, as the model's own class has it."""
        if hasattr(self.model, "prepare_decoder_input_ids_from_labels"):
            own = self.model.prepare_decoder_input_ids_from_labels(labels=torch.tensor([words]))
            return [int(token) for token in own[0]]
        return [self.model.config.decoder_start_token_id, *words[:-1]]


def _transposed(module: nn.Module) -> bool:
    """Whether it keeps ``[d_in, d_out]``."""
    return isinstance(module, Conv1D) or bool(getattr(module, "is_transposed", False))
