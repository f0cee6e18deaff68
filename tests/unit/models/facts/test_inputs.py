"""The collected covariances of modules' inputs, against a loop over tokens."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lorabank.models.facts.inputs import InputCovariance, collect_inputs
from tests.unit.training.plain import plain_layer

D = 8


class Body(nn.Module):
    """``q`` and ``k`` see one input, ``o`` another; ``side`` sees a copy with the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 4)
        self.q, self.k, self.o, self.side = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.drop(self.embed(input_ids))
        return self.o(torch.tanh(self.q(x) + self.k(x))) + self.side(x.clone())


@pytest.fixture
def body() -> Body:
    torch.manual_seed(0)
    return Body()


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "input_ids": torch.randint(13, (rows, 5), generator=generator),
            "attention_mask": (torch.arange(5) < torch.tensor(lengths)[:, None]).long(),
            "labels": torch.zeros(rows, dtype=torch.long),
        }
        for rows, lengths in ((2, [5, 2]), (3, [1, 4, 5]))
    ]


def test_covariances_are_sums_over_real_tokens(body) -> None:
    body.train()
    found = collect_inputs(body, ["q", "k", "o", "side"], batches())
    assert body.training
    assert found.shared == {"q": "q", "k": "q", "o": "o", "side": "side"}
    assert set(found.sums) == {"q", "o", "side"}
    sums = {name: np.zeros((4, 4)) for name in ("q", "o")}
    tokens = 0
    with torch.no_grad():
        for batch in batches():
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                for position in range(int(mask.sum())):
                    x = body.embed(ids[position])
                    y = torch.tanh(body.q(x) + body.k(x))
                    sums["q"] += np.outer(x.numpy(), x.numpy())
                    sums["o"] += np.outer(y.numpy(), y.numpy())
                    tokens += 1
    assert tokens == 17
    assert set(found.tokens.values()) == {tokens}
    for name, expected in sums.items():
        np.testing.assert_allclose(found.sums[name].numpy(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.of(name).numpy(), expected / tokens, rtol=1e-5, atol=1e-7)
    assert torch.equal(found.of("k"), found.of("q"))
    torch.testing.assert_close(found.sums["side"], found.sums["q"])


def test_modules_share_only_if_they_share_every_call() -> None:
    """As in DeBERTa: query and value see the same text, and query also sees the positions."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.eye(3))
            self.q, self.v, self.k = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            text = self.q(x) + self.v(x) + self.k(x)
            return text + (self.q(self.table) + self.k(self.table)).sum()

    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2))
    found = collect_inputs(Positions(), ["q", "v", "k"], [{"x": x[:1]}, {"x": x[1:]}])
    assert found.shared == {"q": "q", "v": "v", "k": "q"}
    text = torch.einsum("ntd,nte->de", x, x)
    torch.testing.assert_close(found.sums["v"], text)
    torch.testing.assert_close(found.sums["q"], text + 2 * torch.eye(3))
    assert found.tokens == {"q": 16, "v": 10}


def test_a_wrapped_module_is_collected_under_its_name(body) -> None:
    plain = collect_inputs(body, ["q"], batches())
    body.q = plain_layer(body.q, 2, 1.0, 0.5)
    wrapped = collect_inputs(body, ["q"], batches())
    assert torch.equal(wrapped.sums["q"], plain.sums["q"])


def test_without_a_mask_every_token_counts(body) -> None:
    bare = [{"input_ids": batch["input_ids"]} for batch in batches()]
    assert collect_inputs(body, ["q"], bare).tokens == {"q": 25}


def test_an_encoder_decoder_counts_each_side_by_its_own_mask() -> None:
    """Both sides padded to the same length, so that only the module's place can tell them apart."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.EncDecAttention = nn.Linear(4, 4), nn.ModuleDict({"k": nn.Linear(4, 4), "q": nn.Linear(4, 4)})

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(is_encoder_decoder=True)
            self.embed = nn.Embedding(13, 4)
            self.encoder, self.decoder = Layer(), Layer()

        def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
            states = self.encoder.q(self.embed(input_ids))
            x = self.decoder.q(self.embed(labels.clamp_min(0)))
            return self.decoder.EncDecAttention["q"](x) @ self.decoder.EncDecAttention["k"](states).mT

    torch.manual_seed(0)
    batch = {
        "input_ids": torch.randint(13, (2, 3)),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
        "labels": torch.tensor([[3, 1, -100], [5, 2, 1]]),
    }
    names = ["encoder.q", "decoder.q", "decoder.EncDecAttention.k", "decoder.EncDecAttention.q"]
    found = collect_inputs(Two(), names, [batch])
    assert [found.tokens[name] for name in names] == [4, 5, 4, 5]


def test_bytes_come_back_as_they_were(body) -> None:
    found = collect_inputs(body, ["q", "k", "o"], batches())
    data = found.to_bytes()
    again = InputCovariance.from_bytes(data)
    assert (again.tokens, again.shared) == (found.tokens, found.shared)
    for name, total in found.sums.items():
        torch.testing.assert_close(again.sums[name], total, rtol=1e-6, atol=1e-6)
        assert torch.equal(again.sums[name], again.sums[name].T)
    assert again.to_bytes() == data
    assert len(data) < 2 * 4 * 10 + 2000  # ten numbers for each of two 4 x 4 sums
