"""Every form of a mixed batch against loops over samples and adapters, against each other, and against PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.models.mixing.mixture import Mixture
from lorabank.models.mixing.per_sample import Masked, PerSample, Routes, Segments, Stacked

D_OUT, D_IN = 48, 40
MODULE = {"m": (D_OUT, D_IN)}
FORMS = ["masked", "segments", "stacked"]
BATCHES = {
    "one adapter each": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]],
    "sorted": [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]],
    "a sum of adapters": [[1, 1, 0, 0], [1, 1, 0, 1], [0, 0, 0, 1], [1, 0, 0, 1]],
    "negative and the base": [[-0.5, 0, 0, 2], [0, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 0]],
    "an adapter without this module": [[0, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]],
    "the base alone": [[0, 0, 0, 0]] * 4,
    "one state": [[0.3, 0, 0, 0.7]] * 4,
}
batches = pytest.mark.parametrize("weights", [torch.tensor(rows).float() for rows in BATCHES.values()], ids=BATCHES)
forms = pytest.mark.parametrize("form", FORMS)


@pytest.fixture
def adapters(make_adapter) -> dict[str, LoraFactors]:
    """Four of mixed rank and scaling; the third leaves module ``m`` alone."""
    return {
        "a": make_adapter(MODULE, 2, 1.0, seed=1),
        "b": make_adapter(MODULE, 5, 2.0, rslora=True, seed=2),
        "c": make_adapter({"other": (D_OUT, D_IN)}, 3, 1.0, seed=3),
        "d": make_adapter(MODULE, 1, 0.7, seed=4),
    }


def naive(adapters: dict[str, LoraFactors], x: Tensor, weights: Tensor) -> Tensor:
    """``sum_k w_ik s_k B_k A_k x_i`` sample by sample through the delta weights, in float64."""
    sums = []
    for sample, row in zip(x.double(), weights.tolist(), strict=True):
        total = torch.zeros(*sample.shape[:-1], D_OUT, dtype=torch.float64)
        for w, factors in zip(row, adapters.values(), strict=True):
            if "m" in factors.A:
                delta = factors.scaling["m"] * (factors.B["m"].double() @ factors.A["m"].double())
                total = total + w * (sample @ delta.T)
        sums.append(total)
    return torch.stack(sums)


def forced(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(Routes, "costs", lambda self, tokens: {form: 0.0})


@batches
@forms
@pytest.mark.parametrize("shape", [(4, D_IN), (4, 3, D_IN), (4, 2, 3, D_IN)])
@torch.no_grad()
def test_every_form_is_the_loop_over_samples(adapters, monkeypatch, weights: Tensor, form: str, shape) -> None:
    forced(monkeypatch, form)
    factors = AdapterStack.build(adapters).modules["m"]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    out = torch.randn(*shape[:-1], D_OUT, generator=torch.Generator().manual_seed(6))
    expected = out.double() + naive(adapters, x, weights)
    found = PerSample(Routes(weights, factors), factors).add(out.clone(), x)
    assert (found.double() - expected).abs().max() <= 1e-6 * expected.abs().max()
    for i, row in enumerate(weights):
        if not row.any():
            assert torch.equal(found[i], out[i])  # the base, bit for bit


@batches
@forms
@torch.no_grad()
def test_in_bfloat16(adapters, monkeypatch, weights: Tensor, form: str) -> None:
    """Within three roundings of 8 bits (to h, to its weight, to the sum) of what the rounded factors give exactly."""
    forced(monkeypatch, form)
    low = {
        name: LoraFactors(
            {m: a.bfloat16() for m, a in one.A.items()}, {m: b.bfloat16() for m, b in one.B.items()}, one.scaling
        )
        for name, one in adapters.items()
    }
    factors = AdapterStack.build(low, dtype=torch.bfloat16).modules["m"]
    x = torch.randn(4, 3, D_IN, generator=torch.Generator().manual_seed(5)).bfloat16()
    out = torch.randn(4, 3, D_OUT, generator=torch.Generator().manual_seed(6)).bfloat16()
    expected = out.double() + naive(low, x, weights)
    found = PerSample(Routes(weights, factors), factors).add(out.clone(), x)
    assert (found.double() - expected).abs().max() <= 3 * 2**-8 * expected.abs().max()
    for i, row in enumerate(weights):
        if not row.any():
            assert torch.equal(found[i], out[i])


@torch.no_grad()
def test_the_form_follows_the_batch(make_adapter) -> None:
    adapters = {f"t{k}": make_adapter({"m": (384, 384)}, 8, 1.0, seed=k) for k in range(64)}
    factors = AdapterStack.build(adapters).modules["m"]
    each = torch.eye(64)[torch.arange(32)]
    assert isinstance(Routes(each, factors).form(64), Stacked)  # many states, many tokens
    assert isinstance(Routes(each[:8], factors).form(1), Masked)  # decoding
    assert isinstance(Routes(torch.eye(64)[torch.arange(32) // 16 * 5], factors).form(64), Segments)  # two states
    together = Routes(torch.full((32, 64), 1 / 64), factors)
    assert not isinstance(together.form(64), Stacked)  # all adapters for all: nothing is gained by copies


@torch.no_grad()
def test_neighbours_are_not_copied(make_adapter) -> None:
    adapters = {f"t{k}": make_adapter(MODULE, 2, 1.0, seed=k) for k in range(5)}
    factors = AdapterStack.build(adapters).modules["m"]
    state = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 0, 1]], dtype=torch.float32)
    (_, stop, first, _), (_, _, second, _) = Routes(state, factors).segments().runs
    assert (stop, first) == (2, slice(2, 6))
    assert second.tolist() == [0, 1, 8, 9]
    assert factors.A[first].data_ptr() == factors.A[2].data_ptr()
    assert factors.B.T[first].is_contiguous()


@torch.no_grad()
def test_a_changed_batch_replaces_the_one_before(adapters) -> None:
    model = nn.Sequential()
    model.add_module("m", nn.Linear(D_IN, D_OUT))
    model.add_module("other", nn.Identity())
    base = model.m
    stack = AdapterStack(("a", "b", "c", "d"), {"m": AdapterStack.build(adapters).modules["m"]})
    mixture = Mixture(model, stack)
    x = torch.randn(4, 3, D_IN)
    weights = torch.tensor(BATCHES["sorted"], dtype=torch.float32)
    for _ in range(2):  # the second time with another state, in the same tensor
        mixture.per_sample(weights)
        for _ in range(2):
            expected = base(x).double() + naive(adapters, x, weights)
            torch.testing.assert_close(model(x).double(), expected, rtol=1e-5, atol=1e-5)
            mixture.per_sample(weights)  # before every step of generation
        weights[1] = torch.tensor([0.0, 2.0, 0.0, 0.0])


@forms
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_logits_of_peft_in_a_mixed_batch(make_base, make_adapter, monkeypatch, form: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    forced(monkeypatch, form)
    base: Path = make_base("bert")
    modules = [f"bert.encoder.layer.{i}.attention.self.{part}" for i in range(2) for part in ("query", "value")]
    ranks = {"a": 2, "b": 5, "c": 3}
    shapes = {name: dict.fromkeys(modules if name != "c" else modules[:1], (32, 32)) for name in ranks}
    adapters = {name: make_adapter(shapes[name], r, 2.0 * r, seed=r) for name, r in ranks.items()}
    torch.manual_seed(7)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).eval()
    head = plain.classifier.state_dict()

    configs = {name: LoraConfig(r=r, lora_alpha=2 * r, target_modules=list(shapes[name])) for name, r in ranks.items()}
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    model.classifier.load_state_dict(head)
    peft = get_peft_model(model, configs["a"], adapter_name="a")
    for name in ("b", "c"):
        peft.add_adapter(name, configs[name])
    with torch.no_grad():
        for name, factors in adapters.items():
            for module in factors.A:
                layer = peft.get_submodule(f"base_model.model.{module}")
                layer.lora_A[name].weight.copy_(factors.A[module])
                layer.lora_B[name].weight.copy_(factors.B[module])
    inputs = {"input_ids": torch.randint(4, 30, (6, 9)), "attention_mask": torch.ones(6, 9, dtype=torch.long)}
    names = ["b", "a", "__base__", "c", "c", "a"]
    with torch.inference_mode():
        expected = peft.eval()(**inputs, adapter_names=names).logits
        untouched = plain(**inputs).logits
        mixture = Mixture(plain, AdapterStack.build(adapters))
        mixture.per_sample(torch.tensor([[float(name == own) for own in adapters] for name in names]))
        found = plain(**inputs).logits
    assert (expected - untouched).abs().max() > 0.1  # the adapters matter
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
