"""lorabank's own PEFT folders, against PEFT itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.commands import Command
from lorabank.core.errors import DataError
from lorabank.exchange.peft_folder import (
    adapter_files,
    combined_files,
    read_adapter,
    read_head,
    read_stack,
)
from lorabank.exchange.stored_factors import by_pattern

MODULES = {f"bert.encoder.layer.{i}.attention.self.{part}": (32, 32) for i in range(2) for part in ("query", "value")}
HEAD = {"classifier.weight": torch.arange(64.0).reshape(2, 32) / 64, "classifier.bias": torch.tensor([1.0, -1.0])}


def save(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def peft_deltas(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The delta weights as PEFT computes them from the folder."""
    from peft import PeftModel
    from peft.tuners.lora import Linear
    from transformers import AutoModelForSequenceClassification

    model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base), folder)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear)}
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach()
        for name, layer in layers.items()
    }


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_sees_the_delta_weights_that_were_meant(rslora, tmp_path, make_base, make_adapter) -> None:
    factors = make_adapter(MODULES, 4, 6.0, rslora=rslora)
    files = adapter_files(
        factors,
        HEAD,
        base_model="someone/base",
        task_type="SEQ_CLS",
        r=4,
        lora_alpha=6.0,
        use_rslora=rslora,
        head_modules=("classifier",),
    )
    found = peft_deltas(make_base("bert"), save(tmp_path / "out", files))
    assert found.keys() == MODULES.keys()
    s = 6.0 / 2.0 if rslora else 6.0 / 4.0
    for name, delta in found.items():
        torch.testing.assert_close(delta, s * (factors.B[name] @ factors.A[name]), atol=1e-5, rtol=1e-5)


def test_what_is_written_is_read_again(tmp_path, make_adapter) -> None:
    factors = make_adapter(MODULES, 3, 1.5)
    settings = {"base_model": "b", "task_type": "SEQ_CLS", "r": 3, "lora_alpha": 1.5, "use_rslora": False}
    files = adapter_files(factors, HEAD, head_modules=("classifier",), **settings)
    assert files == adapter_files(factors, HEAD, head_modules=("classifier",), **settings)
    read, head, config = read_adapter(save(tmp_path / "out", files))
    assert read.scaling == dict.fromkeys(MODULES, 0.5)
    for name in MODULES:
        assert torch.equal(read.A[name], factors.A[name])
        assert torch.equal(read.B[name], factors.B[name])
    assert head.keys() == HEAD.keys()
    assert all(torch.equal(head[name], HEAD[name]) for name in HEAD)
    assert (config["modules_to_save"], config["lora_alpha"]) == (["classifier"], 1.5)


def test_patterns_reach_peft_and_come_back(tmp_path, make_base, make_adapter) -> None:
    first, *others = MODULES
    small, large = make_adapter(dict.fromkeys(others, (32, 32)), 2, 8.0), make_adapter({first: (32, 32)}, 5, 3.0)
    factors = LoraFactors(small.A | large.A, small.B | large.B, small.scaling | large.scaling)
    files = adapter_files(
        factors,
        HEAD,
        base_model="b",
        task_type="SEQ_CLS",
        r=2,
        lora_alpha=8.0,
        use_rslora=False,
        head_modules=("classifier",),
        rank_pattern={first: 5},
        alpha_pattern={first: 3.0},
    )
    folder = save(tmp_path / "out", files)
    read, _, _ = read_adapter(folder)
    assert read.scaling == {first: pytest.approx(3 / 5), **dict.fromkeys(others, 4.0)}
    for name, delta in peft_deltas(make_base("bert"), folder).items():
        s = 3 / 5 if name == first else 4.0
        torch.testing.assert_close(delta, s * (factors.B[name] @ factors.A[name]), atol=1e-5, rtol=1e-5)


def test_a_sum_of_other_ranks_and_modules_is_one_adapter_in_peft(tmp_path, make_base, make_adapter) -> None:
    queries = {name: shape for name, shape in MODULES.items() if name.endswith("query")}
    parts = {"a": make_adapter(MODULES, 2, 4.0), "b": make_adapter(queries, 7, 3.0, rslora=True, seed=1)}
    joined = AdapterStack.build(parts).combine(torch.tensor([1.0, -0.5]))
    files = combined_files(joined, {}, base_model="b", task_type=None, head_modules=())
    config = json.loads(files["adapter_config.json"])
    assert (config["r"], config["rank_pattern"]) == (9, {name: 2 for name in MODULES if name not in queries})
    assert config["modules_to_save"] is None
    found = peft_deltas(make_base("bert"), save(tmp_path / "out", files))
    assert found.keys() == MODULES.keys()
    for name, delta in found.items():
        expected = 2.0 * (parts["a"].B[name] @ parts["a"].A[name])
        if name in queries:
            expected -= 0.5 * 3.0 / 7**0.5 * (parts["b"].B[name] @ parts["b"].A[name])
        torch.testing.assert_close(delta, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "module"),
    [
        ({"query": 4.0}, "layer.0.query"),
        ({"query": 4.0}, "query"),
        ({"uery": 4.0}, "layer.0.query"),
        ({"0.query": 4.0, "query": 2.0}, "layer.0.query"),
        ({"query": 2.0, "0.query": 4.0}, "layer.0.query"),
        ({"1.query": 4.0}, "layer.11.query"),
        ({"layer.1": 4.0}, "layer.1.query"),
        ({}, "layer.0.query"),
    ],
)
def test_patterns_mean_what_they_mean_in_peft(pattern, module) -> None:
    from peft.utils.other import get_pattern_key

    assert by_pattern(pattern, module, 1.0) == pattern.get(get_pattern_key(pattern, module), 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folders_become_one_stack(tmp_path, make_adapter, dtype) -> None:
    """Against the files read tensor by tensor; mixed ranks, scalings and modules, a head between the factors."""
    from safetensors.torch import load_file

    first = next(iter(MODULES))
    made = {
        "a": (make_adapter(MODULES, 2, 3.0), {"r": 2, "lora_alpha": 3.0, "use_rslora": False}),
        "b": (make_adapter({first: (32, 32)}, 4, 6.0, seed=1), {"r": 4, "lora_alpha": 6.0, "use_rslora": True}),
        "c": (make_adapter(MODULES, 1, 0.5, seed=2), {"r": 1, "lora_alpha": 0.5, "use_rslora": False}),
    }
    folders = {}
    for name, (factors, settings) in made.items():
        files = adapter_files(
            factors, HEAD, base_model="b", task_type="SEQ_CLS", head_modules=("classifier",), **settings
        )
        folders[name] = save(tmp_path / name, files)
    stack = read_stack(folders, device="cpu", dtype=dtype)
    assert stack.names == ("a", "b", "c")
    assert stack.modules.keys() == MODULES.keys()
    scaling = {"a": 1.5, "b": 3.0, "c": 0.5}
    for module, found in stack.modules.items():
        having = [k for k, name in enumerate(made) if name != "b" or module == first]
        files = {k: load_file(folders[list(made)[k]] / "adapter_model.safetensors") for k in having}
        key = f"base_model.model.{module}"
        assert torch.equal(found.A, torch.cat([files[k][f"{key}.lora_A.weight"] for k in having]).to(dtype))
        assert torch.equal(found.B, torch.cat([files[k][f"{key}.lora_B.weight"] for k in having], dim=1).to(dtype))
        ranks = [made[list(made)[k]][1]["r"] for k in having]
        assert found.owner.tolist() == [k for k, r in zip(having, ranks, strict=True) for _ in range(r)]
        assert found.scale.tolist() == [
            scaling[list(made)[k]] for k, r in zip(having, ranks, strict=True) for _ in range(r)
        ]
        assert found.A.untyped_storage().nbytes() == found.A.nbytes  # one allocation, of the size that is needed
        assert found.B.untyped_storage().nbytes() == found.B.nbytes
    for folder in folders.values():
        head = read_head(folder)
        assert head.keys() == HEAD.keys()
        assert all(torch.equal(head[name], HEAD[name]) for name in HEAD)


def test_a_stack_refuses_what_a_single_folder_refuses(tmp_path, make_adapter) -> None:
    factors = make_adapter(MODULES, 2, 2.0)
    settings = {"base_model": "b", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 2.0, "use_rslora": False}
    half = LoraFactors(factors.A, dict(list(factors.B.items())[1:]), factors.scaling)
    folder = save(tmp_path / "half", adapter_files(half, {}, head_modules=(), **settings))
    with pytest.raises(DataError, match="do not cover the same modules"):
        read_stack({"half": folder}, device="cpu", dtype=torch.float32)
    some, other = (make_adapter({"m": shape}, 2, 2.0) for shape in ((4, 8), (4, 6)))
    folders = {
        name: save(tmp_path / name, adapter_files(one, {}, head_modules=(), **settings))
        for name, one in (("some", some), ("other", other))
    }
    with pytest.raises(ValueError, match="'m' in different sizes"):
        read_stack(folders, device="cpu", dtype=torch.float32)


def test_a_tensor_from_elsewhere_or_half_a_pair_is_refused(tmp_path, make_adapter) -> None:
    factors = make_adapter(MODULES, 2, 2.0)
    settings = {"base_model": "b", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 2.0, "use_rslora": False}
    half = LoraFactors(factors.A, dict(list(factors.B.items())[1:]), factors.scaling)
    files = adapter_files(half, {}, head_modules=(), **settings)
    with pytest.raises(DataError, match="do not cover the same modules"):
        read_adapter(save(tmp_path / "half", files))
    from safetensors.torch import save as save_tensors

    files["adapter_model.safetensors"] = save_tensors({"bert.weight": torch.ones(1)})
    with pytest.raises(DataError, match=r"'bert\.weight' is not part of an adapter"):
        read_adapter(save(tmp_path / "other", files))


def test_a_folder_that_cannot_be_read_is_one_line_with_the_next_command(tmp_path, make_adapter) -> None:
    files = adapter_files(
        make_adapter(MODULES, 4, 6.0), HEAD, base_model="someone/base", task_type="SEQ_CLS", r=4, lora_alpha=6.0,
        use_rslora=False, head_modules=("classifier",),
    )  # fmt: skip
    folder = save(tmp_path / "adapter", files | {"adapter_model.safetensors": b"{}"})
    for read in (read_adapter, read_head):
        with pytest.raises(DataError) as caught:
            read(folder)
        assert str(folder) in caught.value.message
        assert caught.value.unchanged == "the bank was not changed"
        assert caught.value.commands == (Command("verify", "--full"),)
