"""Checkpoints of loralib: every layer's change of its weight, by the definitions of its reference implementation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorabank.core.config import LoralibConfig
from lorabank.core.errors import ConfigError, DataError, IncompatibleError
from lorabank.exchange.placed.loralib_checkpoint import read_loralib, with_loralib
from lorabank.exchange.untrusted_adapter import ForeignAdapter

R, ALPHA = 3, 6.0
ROUNDING = 1e-5
"""Of float32 products of numbers around 1, whose sums have at most some dozens of terms."""


class Body(nn.Module):
    """One module for each layer of loralib."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(10, 8)
        self.words = nn.Embedding(20, 8)
        self.c_attn = Conv1D(12, 10)
        self.qkv = nn.Linear(10, 12)
        self.pixels = nn.Conv2d(4, 6, 3)
        self.grouped = nn.Conv2d(4, 6, 2, groups=2)
        self.depthwise = nn.Conv2d(2, 2, 1, groups=2)  # its ranks come to less than r
        self.line = nn.Conv1d(4, 6, 1)
        self.rows = nn.Conv1d(4, 6, 3)
        self.oblong = nn.Conv2d(4, 6, (1, 3))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def merged(A: Tensor, B: Tensor, enabled: Sequence[bool], d_out: int) -> Tensor:
    """As `MergedLinear` computes it: a convolution of n groups, whose rows go where ``enable_lora`` is true."""
    delta = F.conv1d(A[None], B[..., None], groups=sum(enabled))[0]
    whole = A.new_zeros(len(enabled), d_out // len(enabled), A.shape[1])
    whole[torch.tensor(enabled)] = delta.view(sum(enabled), -1, A.shape[1])
    return whole.flatten(0, 1)


def kernel(A: Tensor, B: Tensor, conv: nn.Module) -> Tensor:
    """As `ConvLoRA` computes it, and the block-diagonal matrix that the kernel stands for."""
    changed = (B @ A).view(conv.weight.shape)
    return torch.block_diag(*changed.flatten(1).chunk(conv.groups))


def placed(body: nn.Module, tensors: Mapping[str, Tensor], enabled: str | None = None) -> ForeignAdapter:
    config = LoralibConfig(alpha=ALPHA, enable_lora=enabled)
    base: Any = SimpleNamespace(model=body, head_modules=())
    return with_loralib(read_loralib(save(dict(tensors)), "lora.safetensors", config), base)


CASES: dict[str, tuple[tuple[int, int], tuple[int, int], Any]] = {
    "query": ((R, 10), (8, R), lambda A, B, body: B @ A),
    "words": ((R, 20), (8, R), lambda A, B, body: B @ A),
    "c_attn": ((2 * R, 10), (8, R), lambda A, B, body: merged(A, B, (True, False, True), 12)),
    "qkv": ((3 * R, 10), (12, R), lambda A, B, body: merged(A, B, (True, True, True), 12)),
    "pixels": ((3 * R, 12), (18, 3 * R), lambda A, B, body: kernel(A, B, body.pixels)),
    "grouped": ((2 * R, 8), (6, 2 * R), lambda A, B, body: kernel(A, B, body.grouped)),
    "depthwise": ((R, 2), (1, R), lambda A, B, body: kernel(A, B, body.depthwise)),
    "line": ((R, 4), (6, R), lambda A, B, body: kernel(A, B, body.line)),
}
"""Module to the shapes of A and B, and the change of its matrix ``[d_out, d_in]`` apart from the scaling."""


@pytest.mark.parametrize("module", CASES)
def test_every_layer_changes_its_matrix_as_loralib_does(module: str) -> None:
    body, (of_A, of_B, change) = Body(), CASES[module]
    A, B = random(*of_A, seed=1), random(*of_B, seed=2)
    enabled = "true,false,true" if module == "c_attn" else None
    found = placed(body, {f"{module}.lora_A": A, f"{module}.lora_B": B}, enabled)
    expected = ALPHA / R * change(A.double(), B.double(), body)
    delta = found.factors.delta(module)
    assert (delta.double() - expected).abs().max() < ROUNDING * expected.abs().max()
    assert found.r == len(found.factors.A[module])
    assert found.factors.scaling[module] * found.r == pytest.approx(found.lora_alpha)


def test_the_embeddings_layer_answers_as_its_factors_do() -> None:
    """loralib looks A up, transposed, and multiplies by B, transposed."""
    body, A, B = Body(), random(R, 20, seed=1), random(8, R, seed=2)
    found = placed(body, {"words.lora_A": A, "words.lora_B": B})
    tokens = torch.tensor([[3, 0, 19], [7, 7, 1]])
    theirs = body.words(tokens) + F.embedding(tokens, A.T) @ B.T * (ALPHA / R)
    ours = F.embedding(tokens, body.words.weight + found.factors.delta("words").T)
    torch.testing.assert_close(ours, theirs, rtol=ROUNDING, atol=ROUNDING)


def test_ranks_and_scalings_of_their_own_stay() -> None:
    tensors = {}
    for module, (of_A, of_B, _) in CASES.items():
        tensors[f"module.{module}.lora_A"], tensors[f"module.{module}.lora_B"] = random(*of_A), random(*of_B)
    found = placed(Body(), tensors, "true,false,true")
    assert set(found.factors.A) == set(CASES)
    assert found.taken == ("module.",)
    for module, A in found.factors.A.items():
        rank = found.rank_pattern.get(module, found.r)
        assert len(A) == rank
        alpha = found.alpha_pattern.get(module, found.lora_alpha)
        assert alpha / rank == pytest.approx(ALPHA / R)


@pytest.mark.parametrize(
    ("tensors", "enabled", "error", "said"),
    [
        ({"query.lora_A": (R, 10)}, None, DataError, "'query' has only one of lora_A and lora_B"),
        ({"query.lora_A": (R, 10), "query.lora_B": (8, R), "query.bias": (8,)}, None, DataError, "'query.bias'"),
        ({"query.weight": (8, 10)}, None, DataError, r"lora\.safetensors: no tensor of it is named NAME\.lora_A"),
        ({"query.lora_A.weight": (R, 10)}, None, DataError, r"lora\.safetensors has tensors of PEFT, such as 'query"),
        ({"base_model.model.words.lora_embedding_A": (R, 20)}, None, DataError, "has tensors of PEFT, such as 'words"),
        ({"query.lora_B.default.weight": (8, R)}, None, DataError, "has tensors of PEFT"),
        ({"module.query.bias": (8,), "query.bias": (8,)}, None, DataError, r"^lora\.safetensors: two tensors"),
        ({"query.lora_A": (R, 10), "query.lora_B": (8, R)}, "true,false,true", ConfigError, "in a part of its rows"),
        ({"query.lora_A": (R, 10), "query.lora_B": (8, R)}, "", ConfigError, "'' is not a list of true and false"),
        ({"qkv.lora_A": (3 * R, 10), "qkv.lora_B": (12, R)}, "true,true,true", ConfigError, "in a part of its rows"),
        ({"other.lora_A": (R, 10), "other.lora_B": (8, R)}, None, IncompatibleError, "no module of that name"),
        ({"query.lora_A": (R, 9), "query.lora_B": (8, R)}, None, IncompatibleError, "are not those of a layer"),
        ({"query.lora_A": (R, 10), "query.lora_B": (7, R)}, None, IncompatibleError, "are not those of a layer"),
        ({"rows.lora_A": (9, 12), "rows.lora_B": (18, 9)}, None, IncompatibleError, "are not those of a layer"),
        ({"oblong.lora_A": (3, 4), "oblong.lora_B": (6, 3)}, None, IncompatibleError, "are not those of a layer"),
        ({"qkv.lora_A": (2 * R, 10), "qkv.lora_B": (8, R)}, None, ConfigError, "adapts 2 of 3 parts of 'qkv'"),
        ({"qkv.lora_A": (2 * R, 10), "qkv.lora_B": (8, R)}, "true,false", ConfigError, "says 1 of 2"),
        ({"qkv.lora_A": (2 * R, 10), "qkv.lora_B": (8, R)}, "q,v", ConfigError, "is not a list of true and false"),
    ],
)
def test_what_is_no_checkpoint_of_loralib_is_refused(
    tensors: Mapping[str, tuple[int, ...]], enabled: str | None, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        placed(Body(), {name: random(*shape) for name, shape in tensors.items()}, enabled)
    assert "\n" not in str(caught.value)


def test_alpha_is_required() -> None:
    data = save({"query.lora_A": random(R, 10), "query.lora_B": random(8, R)})
    with pytest.raises(ConfigError, match="does not hold the numerator") as caught:
        read_loralib(data, "lora.safetensors", LoralibConfig())
    assert "--alpha" in str(caught.value.hint)
