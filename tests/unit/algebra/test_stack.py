"""The LoRA algebra against sums written out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.exchange.peft_folder import adapter_files, combined_files, read_adapter

D_OUT, D_IN = 7, 11
WEIGHTS = torch.tensor([0.7, -1.3, 0.0, 2.0])


@pytest.fixture
def adapters(make_adapter) -> dict[str, LoraFactors]:
    """Mixed ranks, alphas and scalings; ``q`` is adapted by all, ``v`` by two, ``o`` by one."""
    q, v, o = {"q": (D_OUT, D_IN)}, {"v": (5, D_IN)}, {"o": (D_IN, 3)}
    return {
        "first": make_adapter(q, 2, 16.0, seed=1),
        "second": make_adapter(q | v, 3, 8.0, rslora=True, seed=2),
        "third": make_adapter(q | o, 1, 4.0, seed=3),
        "fourth": make_adapter(v | q, 5, 32.0, seed=4),
    }


def naive(adapters: dict[str, LoraFactors], module: str, weights: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    """``sum_k w_k s_k B_k A_k`` entry by entry, in float64."""
    total = np.zeros(shape)
    for w, factors in zip(weights.tolist(), adapters.values(), strict=True):
        if module not in factors.A:
            continue
        a, b = factors.A[module].double().numpy(), factors.B[module].double().numpy()
        for i in range(shape[0]):
            for j in range(shape[1]):
                total[i, j] += w * factors.scaling[module] * sum(b[i, r] * a[r, j] for r in range(a.shape[0]))
    return total


def close(found: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.double().numpy() - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("module", "shape"), [("q", (D_OUT, D_IN)), ("v", (5, D_IN)), ("o", (D_IN, 3))])
def test_stacked_delta_is_the_weighted_sum(adapters, module: str, shape: tuple[int, int]) -> None:
    weights = WEIGHTS + torch.tensor([0.0, 0.0, 0.4, 0.0])
    close(AdapterStack.build(adapters).modules[module].delta(weights), naive(adapters, module, weights, shape))


@pytest.mark.parametrize(("module", "shape"), [("q", (D_OUT, D_IN)), ("v", (5, D_IN))])
def test_combined_adapter_is_the_weighted_sum(adapters, module: str, shape: tuple[int, int]) -> None:
    combined = AdapterStack.build(adapters).combine(WEIGHTS)
    close(combined.delta(module), naive(adapters, module, WEIGHTS, shape))
    assert combined.scaling[module] == 1.0


def test_combined_rank_is_the_sum_of_the_ranks_used(adapters) -> None:
    combined = AdapterStack.build(adapters).combine(WEIGHTS)  # the third adapter, rank 1, has weight 0
    assert {module: a.shape[0] for module, a in combined.A.items()} == {"q": 2 + 3 + 5, "v": 3 + 5}
    assert "o" not in combined.A  # adapted by the third alone


def test_selected_stack_is_renumbered_and_drops_modules_without_rows(adapters) -> None:
    chosen = AdapterStack.build(adapters).select(["fourth", "first"])
    assert chosen.names == ("fourth", "first")
    assert set(chosen.modules) == {"q", "v"}
    weights = torch.tensor([0.5, -2.0])
    kept = {"fourth": adapters["fourth"], "first": adapters["first"]}
    close(chosen.modules["q"].delta(weights), naive(kept, "q", weights, (D_OUT, D_IN)))
    close(chosen.modules["v"].delta(weights), naive(kept, "v", weights, (5, D_IN)))


def test_one_adapter_with_weight_one_is_itself(adapters) -> None:
    factors = adapters["second"]
    combined = AdapterStack.build({"second": factors}).combine(torch.ones(1))
    for module in ("q", "v"):
        torch.testing.assert_close(combined.delta(module), factors.delta(module), rtol=1e-6, atol=1e-6)


def test_building_does_not_touch_what_is_stacked(adapters) -> None:
    before = {name: {m: a.clone() for m, a in factors.A.items()} for name, factors in adapters.items()}
    combined = AdapterStack.build(adapters).combine(WEIGHTS)
    combined.A["q"].add_(1)
    for name, factors in adapters.items():
        for module, a in factors.A.items():
            assert torch.equal(a, before[name][module])


# ------------------------------------------------------------------------------------------- what PEFT makes of it

LAYERS = tuple(f"bert.encoder.layer.{i}.attention.self" for i in range(2))


def peft_logits(base: Path, folder: Path, files: dict[str, bytes], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    with torch.inference_mode():
        return PeftModel.from_pretrained(model, folder).eval()(**inputs).logits


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_peft_gives_the_same_logits_for_a_combined_folder(make_base, make_adapter, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    base = make_base("bert")
    q = {f"{layer}.query": (32, 32) for layer in LAYERS}
    v = {f"{LAYERS[1]}.value": (32, 32)}
    adapters = {
        "plain": make_adapter(q, 2, 1.0, seed=1),
        "rslora": make_adapter(q | v, 3, 0.5, rslora=True, seed=2),
        "wide": make_adapter(v, 6, 1.5, seed=3),
    }
    weights = torch.tensor([0.6, -0.4, 1.2])
    torch.manual_seed(3)
    head = {"classifier.weight": torch.randn(3, 32), "classifier.bias": torch.randn(3)}
    inputs = {"input_ids": torch.randint(4, 30, (5, 9)), "attention_mask": torch.ones(5, 9, dtype=torch.long)}

    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).eval()
    plain.classifier.load_state_dict({key.removeprefix("classifier."): value for key, value in head.items()})
    with torch.no_grad():
        untouched = plain(**inputs).logits
        for module in q | v:
            delta = naive(adapters, module, weights, (32, 32))
            plain.get_submodule(module).weight += torch.from_numpy(delta).float()
        expected = plain(**inputs).logits
    assert (expected - untouched).abs().max() > 0.1  # the adapters matter

    combined = AdapterStack.build(adapters).combine(weights)
    files = combined_files(combined, head, base_model=str(base), task_type="SEQ_CLS", head_modules=("classifier",))
    found = peft_logits(base, tmp_path / "adapter", files, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    again, again_head, _ = read_adapter(tmp_path / "adapter")
    for module in q | v:
        close(again.delta(module), naive(adapters, module, weights, (32, 32)))
    assert torch.equal(again_head["classifier.weight"], head["classifier.weight"])


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_gives_the_same_delta_for_one_adapter(make_base, make_adapter, tmp_path: Path, rslora: bool) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base, module = make_base("bert"), f"{LAYERS[0]}.query"
    factors = make_adapter({module: (32, 32)}, 4, 6.0, rslora=rslora, seed=5)
    head = {"classifier.weight": torch.zeros(2, 32), "classifier.bias": torch.zeros(2)}
    files = adapter_files(
        factors, head, base_model=str(base), task_type="SEQ_CLS", r=4, lora_alpha=6.0, use_rslora=rslora,
        head_modules=("classifier",),
    )  # fmt: skip
    (tmp_path / "adapter").mkdir()
    for name, data in files.items():
        (tmp_path / "adapter" / name).write_bytes(data)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    adapted = PeftModel.from_pretrained(model, tmp_path / "adapter").get_submodule(f"base_model.model.{module}")
    delta = adapted.get_delta_weight("default").detach()
    close(AdapterStack.build({"a": factors}).combine(torch.ones(1)).delta(module), delta.double().numpy())
