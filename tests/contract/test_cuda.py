"""On a GPU: what is learnt and answered there is what a CPU learns and answers, to the accuracy of the dtype."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, EvalConfig, PredictConfig
from lorabank.core.errors import DivergedError
from lorabank.core.shelves import COMPOSERS, STRATEGIES
from lorabank.models.bases.open_base import OpenBase
from lorabank.training.kernels.lora import lora_linear
from lorabank.workflows.assemble import RuntimeSettings, load_composer, load_runtime
from tests.contract.conftest import KINDS, Lab
from tests.contract.test_training import Stop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ALMOST = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference of a probability: rounding of sums in another order, and eight bits of mantissa."""


@pytest.fixture(scope="session", params=KINDS)
def lab(request: pytest.FixtureRequest, make_lab: Callable[[str], Lab]) -> Lab:
    return make_lab(request.param)


def answers(path: Path, name: str, texts: list[str], device: str, dtype: str) -> torch.Tensor:
    """Probabilities of the labels of the first task, under a composition of two tasks."""
    bank = Bank.open(path)
    snapshot = bank.snapshot()
    runtime = load_runtime(
        bank, snapshot, OpenBase(snapshot.base), RuntimeSettings(device=device, dtype=dtype, batch_size=5)
    )
    composer, _ = load_composer(bank, snapshot, snapshot.composition(name), lambda: runtime)
    return torch.as_tensor(runtime.answer(texts, composer.plan(2, texts), 0).probabilities)


@pytest.mark.parametrize("dtype", sorted(ALMOST))
@pytest.mark.parametrize("mode", sorted(COMPOSERS))
def test_a_composition_answers_as_on_a_cpu(copy, texts, mode: str, dtype: str) -> None:
    bank = copy("olora", 2)
    api.compose(bank, ComposeConfig(mode=mode, set=("kmeans.clusters_per_task=2",), device="cpu"))
    expected = answers(bank, mode, texts, "cpu", "float32")
    found = answers(bank, mode, texts, "cuda", dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=ALMOST[dtype])


@pytest.mark.parametrize("mode", sorted(COMPOSERS))
def test_a_composition_is_made_on_a_gpu(copy, texts, mode: str) -> None:
    bank = copy("olora", 2)
    api.compose(bank, ComposeConfig(mode=mode, set=("kmeans.clusters_per_task=2",), device="cuda"))
    found = api.predict(bank, texts, PredictConfig(composition=mode, device="cuda", batch_size=5))
    assert len(found) == len(texts)
    assert all(0 < one.probability <= 1 for one in found)
    assert Bank.open(bank).verify(full=True) == []


def test_a_forgetting_matrix_is_that_of_a_cpu(copy) -> None:
    bank = copy("olora", 3)
    settings = {"forgetting_matrix": True, "forward_transfer": True, "dtype": "float32"}
    (expected,) = api.evaluate(bank, EvalConfig(**settings, device="cpu"))
    (found,) = api.evaluate(bank, EvalConfig(**settings, device="cuda"))
    assert found.computed > 0  # not the CPU's cells
    for row, on_cpu in zip(found.values, expected.values, strict=True):
        assert row == pytest.approx(on_cpu, abs=1e-6)


@pytest.mark.parametrize("base_dtype", ["auto", "float32"])
@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"joint"}))
def test_a_task_is_learnt_in_bfloat16(lab, tmp_path: Path, strategy: str, base_dtype: str) -> None:
    """A GPU computes in bfloat16; what enters is float32, finite, and answers well where the CPU's does."""
    bank = Path(shutil.copytree(lab.bank(strategy, 1), tmp_path / "bank"))
    on_gpu = lab.add(bank, "two", strategy=strategy, device="cuda", base_dtype=base_dtype)
    snapshot = Bank.open(bank).snapshot()
    tensors = load_file(bank / "adapters" / snapshot.adapter_of("two").digest / "adapter_model.safetensors")
    assert all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in tensors.values())
    other = Path(shutil.copytree(lab.bank(strategy, 1), tmp_path / "other"))
    on_cpu = lab.add(other, "two", strategy=strategy)
    assert on_gpu.score["value"] == pytest.approx(on_cpu.score["value"], abs=0.25)  # 12 rows, another dropout


def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(lab, tmp_path: Path) -> None:
    """A checkpoint holds the random state of the GPU too, which draws the dropout."""
    steps = {"device": "cuda", "epochs": 4, "save_steps": 3}
    whole, stopped = (Path(shutil.copytree(lab.bank("olora", 1), tmp_path / name)) for name in ("whole", "stopped"))
    expected = lab.add(whole, "two", **steps).adapter.digest
    with pytest.raises(KeyboardInterrupt):
        lab.add(stopped, "two", Stop(10), **steps)
    assert api.add_task(stopped, "two", None, resume=True).adapter.digest == expected


def test_what_is_not_finite_is_found_a_step_later(lab, tmp_path: Path) -> None:
    bank = Path(shutil.copytree(lab.bank("olora", 1), tmp_path / "bank"))
    with pytest.raises(DivergedError, match=r"diverged|not finite"):
        lab.add(bank, "two", device="cuda", learning_rate=1e30)
    assert [task.name for task in Bank.open(bank).snapshot().by_position] == ["one"]


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_the_layer_is_that_of_autograd_with_the_same_mask(p: float) -> None:
    dice = torch.Generator().manual_seed(0)
    shapes = {"x": (64, 40), "W": (24, 40), "A": (4, 40), "B": (24, 4)}
    made = {name: torch.randn(shape, generator=dice).cuda() for name, shape in shapes.items()}
    x, W = made["x"].bfloat16().requires_grad_(), made["W"].bfloat16()
    A, B = made["A"].requires_grad_(), made["B"].requires_grad_()
    torch.manual_seed(7)
    out = lora_linear(x, W, None, A, B, 1.7, p)
    out.sum().backward()
    torch.manual_seed(7)
    mask = torch.native_dropout(x.detach(), round(2**16 * p) / 2**16, True)[1] if p else torch.ones_like(x)
    wide = [tensor.detach().double().requires_grad_() for tensor in (x, A, B)]
    dropped = wide[0] * mask.double() / (1 - p)
    exact = wide[0] @ W.double().mT + 1.7 * dropped @ wide[1].mT @ wide[2].mT
    exact.sum().backward()
    pairs = [(out, exact), *((mine.grad, plain.grad) for mine, plain in zip((x, A, B), wide, strict=True))]
    for found, expected in pairs:
        assert float((found.detach().double() - expected.detach()).norm() / expected.detach().norm()) < 2**-6
