"""A task learnt on a base in bfloat16: by every strategy and variant, resumed like any other."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.shelves import MIXTURES, STARTS, STRATEGIES, VARIANTS
from tests.contract.conftest import KINDS, Lab
from tests.contract.test_training import Stop
from tests.contract.test_variants import usual


@pytest.fixture(scope="session", params=KINDS)
def lab(request: pytest.FixtureRequest, make_lab) -> Lab:
    return make_lab(request.param)


OFTEN = ("olora", "inflora", "amlora", "ewc", "gem", "der", "olora-distil", "seqlora", "online-lora")
"""One of each way to treat the past; the others are slow tests."""


@pytest.mark.by_turns
@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(one, marks=[] if one in OFTEN else [pytest.mark.slow])
        for one in sorted(STRATEGIES)
        if one != "joint"
    ],
)
def test_every_strategy_learns(lab, tmp_path: Path, strategy: str) -> None:
    found, scores = {}, dict.fromkeys(("bfloat16", "float32"), 0.0)
    for dtype, seed in itertools.product(scores, (0, 1)):
        bank = Path(shutil.copytree(lab.bank(strategy, 1), tmp_path / f"{dtype}-{seed}"))
        added = lab.add(bank, "two", strategy=strategy, base_dtype=dtype, seed=seed)
        found[dtype] = load_file(bank / "adapters" / added.adapter.digest / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in found[dtype].values()} == {torch.float32}
        assert added.adapter.config["base_dtype"] == dtype
        assert Bank.open(bank).verify(full=True) == []
        scores[dtype] += added.score["value"] / 2
    assert any(not torch.equal(found["bfloat16"][name], tensor) for name, tensor in found["float32"].items())
    assert scores["bfloat16"] == pytest.approx(scores["float32"], abs=0.25)  # 12 rows


@pytest.mark.by_turns
@pytest.mark.parametrize(
    "method", [{"variant": name} for name in (*VARIANTS, *MIXTURES)] + [{"start": name} for name in STARTS], ids=str
)
def test_every_variant_and_start_learns(make_lab, tmp_path: Path, method: dict[str, str]) -> None:
    lab = make_lab("gpt2" if method.get("variant") == "bitfit" else "llama")  # which has no biases
    bank = Path(shutil.copytree(lab.bank("olora", 1), tmp_path / "bank"))
    strategy = usual(**{"variant": "lora"} | method)
    given = method | ({"set": ("group=16",)} if method.get("variant") == "qa-lora" else {})  # 48 inputs
    added = lab.add(bank, "two", base_dtype="bfloat16", target_modules="all-linear", strategy=strategy, **given)
    tensors = load_file(bank / "adapters" / added.adapter.digest / "adapter_model.safetensors")
    assert all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_a_resumed_run_has_the_bytes_of_an_uninterrupted_one(lab, tmp_path: Path) -> None:
    steps = {"base_dtype": "bfloat16", "save_steps": 2}
    whole, stopped = (Path(shutil.copytree(lab.bank("olora", 1), tmp_path / name)) for name in ("whole", "stopped"))
    expected = lab.add(whole, "two", **steps).adapter.digest
    with pytest.raises(KeyboardInterrupt):
        lab.add(stopped, "two", Stop(3), **steps)
    assert api.add_task(stopped, "two", None, resume=True).adapter.digest == expected
