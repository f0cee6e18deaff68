"""InfLoRA's A against numpy's SVD, and the collected covariances against a loop over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lorabank.training.input_subspace import (
    InputCovariance,
    collect_inputs,
    design_A,
    design_adapter,
    extend_memory,
    input_memory,
)
from lorabank.training.variants.layer import LoraLinear

D = 8


def covariance(seed: int, *, d: int = D, decay: float = 0.5) -> Tensor:
    """A random covariance whose eigenvalues fall by ``decay``."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    return torch.from_numpy((q * decay ** np.arange(d)) @ q.T)


def memory_by_svd(tasks: Sequence[Tensor], threshold: float) -> NDArray[np.float64]:
    """The memory as projections onto a growing space, each step an SVD of the projected covariance."""
    basis = np.zeros((tasks[0].shape[0], 0))
    for number, task in enumerate(tasks):
        C = task.numpy()
        total = np.sum(np.linalg.svd(C, compute_uv=False) ** 2)
        U, S, _ = np.linalg.svd(C - basis @ basis.T @ C)
        if number == 0:
            count = max(1, int(np.sum(np.cumsum(S**2) / total < threshold)))
        else:
            held, count = 1 - np.sum(S**2) / total, 0
            while held < threshold and count < len(S):
                held += S[count] ** 2 / total
                count += 1
        basis = np.hstack([basis, U[:, :count]])
    return basis


def complement_by_svd(tasks: Sequence[Tensor], threshold: float) -> NDArray[np.float64]:
    """The same from the other side: the free space, from which directions are taken away."""
    free = np.linalg.svd(memory_by_svd(tasks[:1], threshold))[0][:, memory_by_svd(tasks[:1], threshold).shape[1] :]
    for task in tasks[1:]:
        C = task.numpy()
        total = np.sum(np.linalg.svd(C, compute_uv=False) ** 2)
        U, S, _ = np.linalg.svd(free @ free.T @ C)
        left, count = np.sum(S**2) / total, 0
        while left > 1 - threshold and count < free.shape[1]:
            left -= S[count] ** 2 / total
            count += 1
        if count:
            taken = free - U[:, :count] @ U[:, :count].T @ free
            free = np.linalg.svd(taken)[0][:, : free.shape[1] - count]
    return free


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.98])
def test_memory_is_that_of_a_growing_svd(threshold: float) -> None:
    tasks = [covariance(1), covariance(2), covariance(3)]
    found = input_memory(tasks, threshold=threshold).numpy()
    expected = memory_by_svd(tasks, threshold)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.T @ found, np.eye(found.shape[1]), atol=1e-10)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-9)


def test_memory_and_stored_complement_fill_the_space() -> None:
    tasks = [covariance(1), covariance(2), covariance(3)]
    memory = input_memory(tasks, threshold=0.98).numpy()
    free = complement_by_svd(tasks, 0.98)
    assert 0 < free.shape[1] < D / 2
    np.testing.assert_allclose(memory @ memory.T + free @ free.T, np.eye(D), atol=1e-9)


def test_memory_holds_the_asked_share_of_every_later_task() -> None:
    tasks = [covariance(1), covariance(2), covariance(3)]
    for power in (1, 2):
        M = input_memory(tasks, threshold=0.9, power=power).numpy()
        for task in tasks[1:]:
            energy = np.linalg.matrix_power(task.numpy(), power)
            assert np.trace(M.T @ energy @ M) / np.trace(energy) >= 0.9


def test_power_one_counts_variance() -> None:
    """Eigenvalues 1, 1/2, 1/4, ...: the first two hold 3/4 of the variance and 15/16 of its square."""
    C = torch.diag(0.5 ** torch.arange(20, dtype=torch.float64))
    empty = torch.zeros(20, 0)
    assert extend_memory(empty, C, threshold=0.9, power=2).shape[1] == 1
    assert extend_memory(empty, C, threshold=0.9, power=1).shape[1] == 3  # 1 - 1/8 < 0.9 < 1 - 1/16


def test_the_first_A_is_the_leading_directions() -> None:
    C = covariance(4)
    A = design_A([], C, 3)
    U = np.linalg.svd(C.numpy())[0][:, :3].T / np.sqrt(3)
    assert A.dtype == torch.float32
    for row, expected in zip(A.double().numpy(), U, strict=True):
        np.testing.assert_allclose(row * np.sign(row @ expected), expected, atol=1e-6)


def test_a_later_A_is_the_leading_directions_outside_the_memory() -> None:
    tasks, current = [covariance(1), covariance(2)], covariance(5)
    A = design_A(tasks, current, 2, threshold=0.9).double().numpy()
    M = memory_by_svd(tasks, 0.9)
    U = np.linalg.svd(current.numpy() - M @ M.T @ current.numpy())[0][:, :2].T / np.sqrt(3)
    for row, expected in zip(A, U, strict=True):
        np.testing.assert_allclose(row * np.sign(row @ expected), expected, atol=1e-6)
    np.testing.assert_allclose(A @ A.T, np.eye(2) / 3, atol=1e-6)
    np.testing.assert_allclose(A @ M, 0, atol=1e-6)


def test_inputs_of_earlier_tasks_pass_unchanged_whatever_B_becomes() -> None:
    """Earlier inputs within three dimensions of eight, all kept: A answers them with zero.

    The first task's directions stay below the threshold, so the task counts twice to be kept whole.
    """
    rng = np.random.default_rng(6)
    old = torch.from_numpy(rng.normal(size=(50, 3)) @ rng.normal(size=(3, D)))
    new = torch.from_numpy(rng.normal(size=(50, D)))
    A = design_A([old.T @ old / 50] * 2, new.T @ new / 50, 4, threshold=1.0).double()
    assert float((old @ A.T).abs().max()) < 1e-5
    assert float((new @ A.T).abs().max()) > 0.1


def test_where_no_direction_is_left_rows_are_zero() -> None:
    """Three of eight dimensions are used by earlier tasks, the new one lives in them and two more."""
    eye = torch.eye(D, dtype=torch.float64)
    old = eye[:, :3] @ eye[:3]
    A = design_A([old, old], eye[:, :5] @ eye[:5], 4, threshold=1.0).double()
    assert (A.norm(dim=1) > 1e-9).tolist() == [True, True, False, False]
    np.testing.assert_allclose((A.T @ A)[3:5, 3:5], np.eye(2) / 3, atol=1e-6)
    np.testing.assert_allclose(A[:, [0, 1, 2, 5, 6, 7]], 0, atol=1e-9)


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
    body.q = LoraLinear(body.q, 2, 1.0, 0.5)
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


def test_modules_with_one_input_get_one_A(body) -> None:
    first = collect_inputs(body, ["q", "k", "o"], batches()[:1])
    current = collect_inputs(body, ["q", "k", "o", "side"], batches()[1:])
    designed = design_adapter([first], current, ["q", "k", "o", "side"], 2, threshold=0.6)
    assert torch.equal(designed["q"], designed["k"])
    assert torch.equal(designed["q"], design_A([first.of("q")], current.of("q"), 2, threshold=0.6))
    assert torch.equal(designed["o"], design_A([first.of("o")], current.of("o"), 2, threshold=0.6))
    # the first task did not adapt `side`, so nothing is known of its inputs
    assert torch.equal(designed["side"], design_A([], current.of("side"), 2))


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
