r"""A quantised base with a task merged into its zero points: a folder with the whole model, of the size of the base.

An adapter whose A has equal columns within groups of inputs, as QA-LoRA trains it, changes each group of weights by
one number, which the zero point of the group takes (`Quantiser.shifted`): the codes stay, and nothing is rounded to
few bits again. On layers that are not quantised the adapter is added to the weight.

The folder holds ``config.json``, the tokenizer, and ``model.safetensors`` with the parameters by the names of
transformers; of a quantised layer it has what the quantiser keeps, such as ``NAME.kept_codes``. Its model card makes
the matrices with a few lines of torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import indent

import torch
from torch import Tensor, nn

from lorabank import __version__
from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import IncompatibleError
from lorabank.core.escaping import safe
from lorabank.core.records import BaseModelRecord
from lorabank.core.task_kinds import task_kind
from lorabank.exchange.peft_folder import read_adapter, saved
from lorabank.exchange.safe_folders import in_folder
from lorabank.models.bases.architecture import load_config
from lorabank.models.bases.fingerprint import WEIGHTS, tokenizer_files
from lorabank.models.bases.kinds.attention import INPUTS, Attention
from lorabank.models.bases.kinds.bias import owner_of
from lorabank.models.bases.loading import load_base
from lorabank.models.bases.quantised.linear import QuantisedLinear
from lorabank.models.bases.quantised.recipe import is_ours, read_recipe
from lorabank.models.bases.resolving import locate_base
from lorabank.models.bases.sites import site_of

_UNCHANGED = "nothing was written"


def merged_files(files: Mapping[str, bytes], base: BaseModelRecord, labels: Sequence[str]) -> dict[str, bytes]:
    """The folder of a base with an adapter in its zero points, without the card.

    Args:
        files: PEFT's files of the adapter, as the bank stores them; a classifier's with a head.
        base: The bank's base.
        labels: Of a classifier's head, whose weights are in the files.

    Raises:
        IncompatibleError: The base is not quantised by lorabank, or corrected; or an adapter does not fit zero points.
    """
    if not is_ours(base.quantisation):
        raise _unmergeable(
            "the bank's base is not quantised by lorabank, so there are no zero points to merge into",
            "use a bank that was made with --quantise hqq",
        )
    if read_recipe(str(base.quantisation)).correction is not None:
        raise _unmergeable(
            f"the base is corrected ({base.quantisation}), and a correction stays beside the weights as floats",
            "use a bank that was made with --quantise hqq alone",
        )
    with in_folder(files) as folder:
        factors, head, _ = read_adapter(folder)
    model = load_base(base, dtype=base.dtype).model
    with torch.no_grad():
        for module in factors.A:
            _merge(model, module, factors)
    config = load_config(locate_base(base))
    if task_kind(base.task_type).has_head:
        config.num_labels = len(labels)
        config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    written = {"config.json": config.to_json_string().encode(), WEIGHTS: saved(_parameters(model, head))}
    return tokenizer_files(locate_base(base).path) | written


def merged_card(name: str, note: str, base: BaseModelRecord, folder: str) -> bytes:
    """The model card: what the folder is, and Python that makes a plain model of it."""
    by_hand = indent(read_recipe(str(base.quantisation)).quantiser.by_hand(), "    ")
    code = _SNIPPET.format(folder=folder, auto=task_kind(base.task_type).auto_class, by_hand=by_hand)
    said = (
        f"{safe(name)} merged into the zero points of its base, written by lorabank {__version__}: {safe(note)}. The "
        f"base is {safe(base.name)}, kept as {safe(base.quantisation)}; its codes and steps are unchanged."
    )
    return f"# {name}\n\n{said}\n\n## How to load it\n\n```python\n{code}```\n".encode()


_SNIPPET = """\
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import {auto}, AutoConfig, AutoTokenizer
from transformers.pytorch_utils import Conv1D

folder = Path({folder!r})
model = {auto}.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
tensors = load_file(folder / "model.safetensors")
for name in dict.fromkeys(key.partition(".kept_")[0] for key in tensors if ".kept_" in key):
    own = [key for key in tensors if key.startswith(f"{{name}}.kept_")]
    kept = {{key.partition(".kept_")[2]: tensors.pop(key) for key in own}}
{by_hand}    layer = model.get_submodule(name)
    transposed = isinstance(layer, Conv1D)
    rows = (layer.nf, layer.nx) if transposed else (layer.out_features, layer.in_features)
    matrix = numbers.flatten()[: rows[0] * rows[1]].view(rows)
    tensors[f"{{name}}.weight"] = matrix.T if transposed else matrix
missing, unexpected = model.load_state_dict(tensors, strict=False)
model.tie_weights()
state = model.state_dict()
loaded = {{state[name].data_ptr() for name in tensors if name in state}}
assert not unexpected, unexpected
assert all(state[name].data_ptr() in loaded for name in missing), missing
model.eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
"""


def _merge(model: nn.Module, module: str, factors: LoraFactors) -> None:
    if module in factors.gain:
        raise _unmergeable(f"the adapter multiplies the rows of {module!r}, which no zero point does")
    site, A = site_of(model, module), factors.A[module].double()
    layer = site.module
    if not isinstance(layer, QuantisedLinear):
        weight: nn.Parameter = layer.weight  # type: ignore[assignment]
        own = owner_of(layer)
        if sharing := [name for name, one in model.named_modules() if one is not own and _holds(one, weight)]:
            raise _unmergeable(f"{sharing[0]!r} shares the weight of {module!r}, which alone the adapter changes")
        weight.copy_(site.of_kind.kept(layer, site.merged(factors.delta(module))))
        return
    group = constant_within(A)
    if group == 1:
        raise _unmergeable(
            f"the adapter on {module!r} differs from input to input, and a zero point is shared by a group of them",
            "train with --variant qa-lora, whose adapters are constant within groups",
        )
    delta = factors.scaling[module] * factors.B[module].double() @ A[:, ::group]
    layer.keep(layer.quantiser.shifted(layer.kept, delta, group))


def _holds(module: nn.Module, weight: nn.Parameter) -> bool:
    return any(own is weight for own in module.parameters(recurse=False))


def constant_within(A: Tensor) -> int:
    """The largest size of groups of neighbouring columns in which all columns of A ``[r, d_in]`` are equal."""
    changes = 1 + (A[:, 1:] != A[:, :-1]).any(0).nonzero().flatten()
    return math.gcd(A.shape[1], *changes.tolist())


def _parameters(model: nn.Module, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the names of transformers; of names that share a tensor the first, as the model ties them again."""
    state = model.state_dict()
    for stem, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Attention):
            for part in INPUTS:
                state.pop(f"{stem}.{part}.weight")
                state.pop(f"{stem}.{part}.bias", None)
            state |= {f"{stem}.{name}": tensor for name, tensor in module.as_torch().items()}
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state.items():
        own = head.get(name, tensor)
        if own.data_ptr() not in seen:
            seen.add(own.data_ptr())
            found[name] = own
    return found


def _unmergeable(problem: str, hint: str = "export without --merged") -> IncompatibleError:
    return IncompatibleError(problem, hint=hint, unchanged=_UNCHANGED)
