r"""State dicts of loralib, the reference implementation of LoRA (github.com/microsoft/LoRA, arXiv 2106.09685).

``lora.lora_state_dict(model)`` has ``NAME.lora_A`` and ``NAME.lora_B`` for each layer, and nothing that says of
which kind the layer is: the base's module of that name does. With ``s = alpha / r`` the change of its weight is

| layer          | A               | B                      | delta weight                                    |
| -------------- | --------------- | ---------------------- | ----------------------------------------------- |
| `Linear`       | ``[r, d_in]``   | ``[d_out, r]``         | ``s B A``                                       |
| `Embedding`    | ``[r, V]``      | ``[d, r]``             | ``s B A``, of the transposed table ``[d, V]``   |
| `MergedLinear` | ``[n r, d_in]`` | ``[n d_out / L, r]``   | ``s B_j A_j`` in the rows of the j-th of n parts |
| `Conv2d`       | ``[r k, C k]``  | ``[d_out / G k, r k]`` | ``s (B A).view(d_out, C / G, k, k)``            |

`MergedLinear` cuts the rows of a fused matrix (query, key and value) into L parts of one size, n of which are adapted:
those where its ``enable_lora`` is true, which the checkpoint does not hold. As one adapter it has rank n r: A as it
is, and B with ``B_j`` in the rows of its part and the columns ``j r`` to ``(j + 1) r``.

The `view` of `Conv2d` puts rows ``o k`` to ``(o + 1) k`` of ``B A`` side by side, so that with ``B_o`` these rows of B

    delta_o = s sum_a B_(o, a) (e_a (x) A),        A' = I_k (x) A  [r k^2, C k^2],    B' = B.view(d_out, r k^2)

exactly. With groups, G > 1, a row of ``B A`` belongs to several channels; there the block of each group is factored by
its singular values, in float64, without those that are rounding. The layers for one and three dimensions have this
form for k = 1 alone: with a larger kernel loralib itself fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.config import LoralibConfig
from lorabank.core.errors import ConfigError, DataError, IncompatibleError
from lorabank.core.limits import MAX_RANK
from lorabank.exchange.adapted_modules import Targets
from lorabank.exchange.peft_folder import CONFIG_FILE, WEIGHTS_FILE
from lorabank.exchange.stored_factors import ENDINGS, PREFIX
from lorabank.exchange.tensor_names import plain_keys
from lorabank.exchange.untrusted_adapter import ForeignAdapter
from lorabank.models.bases.loading import LoadedBase
from lorabank.models.bases.sites import Site, sites_in, wrapped_by
from lorabank.models.tasks.heads import head_state

_UNCHANGED = "nothing was changed"
_ENDINGS = (".lora_A", ".lora_B")
_OF_PEFT = tuple(ending for pair in ENDINGS for ending in pair)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_WORDS = {"true": True, "false": False}


def read_loralib(data: bytes, name: str, config: LoralibConfig) -> ForeignAdapter:
    """Read a state dict of loralib that was saved as safetensors.

    Args:
        data: The file; its header and finite values are checked by the caller.
        name: Its name, for messages.
        config: What it does not hold.

    Returns:
        The adapter, whose factors are in ``loralib`` until `with_loralib` places them.

    Raises:
        ConfigError: ``alpha`` is missing, or ``enable_lora`` is not a list of true and false.
        DataError: It is a file of PEFT's, or a tensor is neither a factor nor of a head, or lacks its partner.
    """
    tensors, taken = plain_keys({f"{PREFIX}{key}": tensor for key, tensor in load_tensors(data).items()}, name)
    parts: tuple[dict[str, Tensor], ...] = ({}, {})
    head: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        own = key.removeprefix(PREFIX)
        if tensor.dtype not in _DTYPES:
            _refuse(f"{name}: tensor {own[:200]!r} is {tensor.dtype}; float32, float16 and bfloat16 are read")
        for part, ending in zip(parts, _ENDINGS, strict=True):
            if own.endswith(ending):
                part[own.removesuffix(ending)] = tensor.float()
                break
        else:
            head[own] = tensor.float()
    A, B = parts
    if of_peft := [own for own in head if own.endswith(_OF_PEFT)]:
        _refuse(
            f"{name} has tensors of PEFT, such as {of_peft[0][:200]!r}, whose config lies beside it in a folder",
            hint=f"name the folder with both, {CONFIG_FILE} and {WEIGHTS_FILE}",
        )
    if not A and not B:
        _refuse(f"{name}: no tensor of it is named NAME.lora_A or NAME.lora_B, as those of loralib are")
    for module in sorted(A.keys() ^ B.keys()):
        _refuse(f"{name}: {module[:200]!r} has only one of lora_A and lora_B")
    if config.alpha is None:
        raise ConfigError(
            f"{name} is a checkpoint of loralib, which does not hold the numerator of its scaling alpha / r",
            hint="--alpha N, the lora_alpha that its layers were made with",
            unchanged=_UNCHANGED,
        )
    return ForeignAdapter(
        factors=LoraFactors({}, {}, {}),
        head=head,
        modules_to_save=(),
        task_type=None,
        base_model="",
        r=1,
        lora_alpha=config.alpha,
        use_rslora=False,
        targets=Targets(frozenset(A)),
        rank_pattern={},
        alpha_pattern={},
        loralib={module: (a, B[module]) for module, a in A.items()},
        enabled=_enabled(config.enable_lora),
        taken=taken,
        file=name,
    )


def with_loralib(adapter: ForeignAdapter, base: LoadedBase) -> ForeignAdapter:
    """The adapter with the factors of loralib's layers as those of the base's matrices.

    Args:
        adapter: As it was read.
        base: Its modules say which layers the tensors are of.

    Raises:
        DataError: The checkpoint lacks the base's head, or brings what is neither that nor a factor.
        IncompatibleError: The base has no such module, or one of another shape.
        ConfigError: ``enable_lora`` does not say which parts of a fused matrix are adapted, or says it of none.
    """
    if not adapter.loralib:
        return adapter
    _check_head(adapter.head, set(head_state(base.model, base.head_modules)))
    sites = {site.name: site for site, _ in sites_in(base.model)}
    A: dict[str, Tensor] = {}
    B: dict[str, Tensor] = {}
    scaling: dict[str, float] = {}
    for module, (a, b) in adapter.loralib.items():
        if module not in sites:
            _misfit(f"it adapts {module!r}, and the base has no module of that name that can be adapted")
        A[module], B[module], r = _placed(sites[module], a, b, adapter.enabled)
        if len(A[module]) > MAX_RANK:
            _misfit(f"its delta weight of {module!r} has the rank {len(A[module])}, above {MAX_RANK}")
        scaling[module] = adapter.lora_alpha / r
    if adapter.enabled and not any(_in_part(sites[module], b) for module, (_, b) in adapter.loralib.items()):
        raise ConfigError(
            "--enable-lora: the checkpoint adapts no matrix in a part of its rows, so there is nothing to choose",
            hint="leave --enable-lora out",
            unchanged=_UNCHANGED,
        )
    ranks = {module: len(a) for module, a in A.items()}
    (most, _), *_ = Counter(ranks.values()).most_common()
    alphas = {module: scaling[module] * rank for module, rank in ranks.items()}
    common = next(alphas[module] for module, rank in ranks.items() if rank == most)
    return replace(
        adapter,
        factors=LoraFactors(A, B, scaling),
        r=most,
        lora_alpha=common,
        rank_pattern={module: rank for module, rank in ranks.items() if rank != most},
        alpha_pattern={module: alpha for module, alpha in alphas.items() if alpha != common},
        loralib={},
    )


def _placed(site: Site, a: Tensor, b: Tensor, enabled: tuple[bool, ...]) -> tuple[Tensor, Tensor, int]:
    """``A [R, d_in]`` and ``B [d_out, R]`` of a site, and loralib's r."""
    module: Any = wrapped_by(site.module)
    if a.dim() != 2 or b.dim() != 2 or not a.numel() or not b.numel():
        _misshapen(site, a, b)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return _convolution(site, module, a, b)
    (rows, d_in), (width, r) = a.shape, b.shape
    if d_in != site.d_in or rows % r or width % (rows // r):
        _misshapen(site, a, b)
    if (rows, width) == (r, site.d_out):
        return a, b, r
    adapted, size = rows // r, width // (rows // r)
    if site.d_out % size or adapted > site.d_out // size:
        _misshapen(site, a, b)
    whole = b.new_zeros(site.d_out, rows)
    for j, part in enumerate(_parts(site, adapted, site.d_out // size, enabled)):
        whole[part * size : (part + 1) * size, j * r : (j + 1) * r] = b[j * size : (j + 1) * size]
    return a, whole, r


def _in_part(site: Site, b: Tensor) -> bool:
    """Whether B has fewer rows than a linear layer's matrix."""
    return site.plain and len(b) < site.d_out


def _parts(site: Site, adapted: int, parts: int, enabled: tuple[bool, ...]) -> list[int]:
    """The numbers of the parts of a fused matrix that are adapted."""
    if adapted == parts:
        return list(range(parts))
    if len(enabled) != parts or sum(enabled) != adapted:
        said = f", and --enable-lora says {sum(enabled)} of {len(enabled)}" if enabled else ""
        raise ConfigError(
            f"the checkpoint adapts {adapted} of {parts} parts of {site.name!r} and does not hold which{said}",
            hint=f"give --enable-lora {parts} words, true for each part that was adapted, such as true,false,true",
            unchanged=_UNCHANGED,
        )
    return [i for i, on in enumerate(enabled) if on]


def _convolution(site: Site, conv: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, int]:
    k, groups, d_out = conv.kernel_size[0], conv.groups, site.d_out
    rank, entries = b.shape[1], d_out * site.d_in // groups
    fits = a.shape == (rank, conv.in_channels * k) and len(b) == d_out // groups * k and rank % k == 0
    if not fits or set(conv.kernel_size) != {k} or len(b) * a.shape[1] != entries:
        _misshapen(site, a, b)
    if groups == 1:
        return torch.kron(torch.eye(k), a), b.reshape(d_out, k * rank), rank // k
    width = site.d_in // groups
    blocks = (b.double() @ a.double()).view(groups, d_out // groups, width)
    found = [_factored(block) for block in blocks]
    A = torch.block_diag(*(A for A, _ in found))
    return A.float(), torch.block_diag(*(B for _, B in found)).float(), rank // k


def _factored(block: Tensor) -> tuple[Tensor, Tensor]:
    """``A [R, d_in]`` and ``B [d_out, R]`` of a matrix in float64, R its rank apart from rounding, at least 1."""
    U, S, Vh = torch.linalg.svd(block, full_matrices=False)
    least = S[0] * max(block.shape) * torch.finfo(block.dtype).eps
    R = max(1, int((least < S).sum()))
    return Vh[:R], U[:, :R] * S[:R]


def _check_head(found: Mapping[str, Tensor], wanted: set[str]) -> None:
    for name in sorted(found.keys() - wanted):
        _refuse(
            f"the checkpoint brings {name[:200]!r}, which is neither a factor of LoRA nor of the base's head",
            hint="save it with lora.lora_state_dict(model, bias='none')",
        )
    for name in sorted(wanted - found.keys()):
        _refuse(
            f"the checkpoint lacks {name!r}, a weight of the head ({len(wanted - found.keys())} of {len(wanted)})",
            hint="save the head's weights beside it, by the names that the model gives them",
        )


def _enabled(text: str | None) -> tuple[bool, ...]:
    words = [] if text is None else [word.strip().lower() for word in text.split(",")]
    if any(word not in _WORDS for word in words):
        raise ConfigError(
            f"--enable-lora {str(text)[:80]!r} is not a list of true and false",
            hint="--enable-lora true,false,true adapts the first and the last of three parts",
            unchanged=_UNCHANGED,
        )
    return tuple(_WORDS[word] for word in words)


def _misshapen(site: Site, a: Tensor, b: Tensor) -> NoReturn:
    _misfit(
        f"its lora_A {list(a.shape)} and lora_B {list(b.shape)} of {site.name!r} are not those of a layer of loralib "
        f"on the base's {type(site.module).__name__} [{site.d_out}, {site.d_in}]"
    )


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise DataError(message, hint=hint, unchanged=_UNCHANGED)


def _misfit(reason: str) -> NoReturn:
    raise IncompatibleError(f"the adapter does not fit this bank's base model: {reason}", unchanged=_UNCHANGED)
