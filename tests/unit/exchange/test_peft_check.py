"""What is handed to plain PEFT means there what it means here, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import IncompatibleError
from lorabank.core.records import BaseModelRecord
from lorabank.exchange.peft_check import plain_files
from lorabank.exchange.peft_folder import CONFIG_FILE, adapter_files, read_adapter, read_stack
from lorabank.models.bases.fingerprint import config_hash, read_json
from lorabank.models.bases.targets import find_targets

SMALL = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "moe_intermediate_size": 24, "num_key_value_heads": 4, "max_position_embeddings": 64, "num_experts_per_tok": 2,
    "head_dim": 8, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
GLM = {"n_routed_experts": 4, "first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
# Bases whose dense or shared layers are named like the experts of a mixture, and two without that.
BASES: dict[str, dict[str, Any]] = {
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "dots1": GLM,
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 1},
    "glm4_moe": GLM,
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]},
    "qwen3_moe": {"num_experts": 4, "mlp_only_layers": [0]},
    "mixtral": {"num_local_experts": 4},
    "llama": {},
}


def save_base(folder: Path, kind: str, **fields: Any) -> BaseModelRecord:
    """A tiny random causal model of that type, as a bank records it."""
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **(SMALL | fields))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return BaseModelRecord(
        name=str(folder), source="local", revision=None, config_hash=config_hash(read_json(folder / "config.json")),
        fingerprint="", tokenizer_hash="", dtype="float32", task_type="CAUSAL_LM", hidden_size=32, parameters=0,
    )  # fmt: skip


def save_adapter(
    base: BaseModelRecord, spec: str = "all-linear", rank: int = 2
) -> tuple[LoraFactors, dict[str, bytes]]:
    """A random adapter with patterns for its last module, and its files."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base.name)
    modules = find_targets(model, spec, ()).names
    ranks = dict.fromkeys(modules, rank) | {modules[-1]: rank + 1}
    linear = {name: model.get_submodule(name) for name in modules}
    factors = LoraFactors(
        {name: torch.randn(ranks[name], layer.in_features) for name, layer in linear.items()},
        {name: torch.randn(layer.out_features, ranks[name]) for name, layer in linear.items()},
        {name: 3 / rank if name != modules[-1] else 7 / (rank + 1) for name in modules},
    )
    files = adapter_files(
        factors, {}, base_model=base.name, task_type=base.task_type, r=rank, lora_alpha=3, use_rslora=False,
        head_modules=(), rank_pattern={modules[-1]: rank + 1}, alpha_pattern={modules[-1]: 7},
    )  # fmt: skip
    return factors, files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def peft_deltas(base: BaseModelRecord, folder: Path) -> dict[str, torch.Tensor]:
    """Module to what PEFT adds to its weight."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.name), folder)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach()
        for name, layer in layers.items()
    }


@pytest.mark.parametrize("kind", BASES)
def test_plain_peft_adds_to_every_module_what_was_meant(kind, tmp_path) -> None:
    base = save_base(tmp_path / "base", kind, **BASES[kind])
    factors, files = save_adapter(base)
    folder = write(tmp_path / "out", plain_files(files, base, 0))
    found = peft_deltas(base, folder)
    assert found.keys() == factors.A.keys()
    for name, delta in found.items():
        torch.testing.assert_close(delta, factors.delta(name), atol=1e-5, rtol=1e-5)
    # and it is still read here as what it was
    read, _, config = read_adapter(folder)
    assert read.scaling == pytest.approx(dict(factors.scaling))
    stack = read_stack({"one": folder}, device="cpu", dtype=torch.float32).combine(torch.ones(1))
    for name in factors.A:
        torch.testing.assert_close(stack.delta(name), factors.delta(name), atol=1e-5, rtol=1e-5)
    if kind == "llama":
        assert files[CONFIG_FILE] == (folder / CONFIG_FILE).read_bytes()
        assert "target_parameters" not in config


def test_targets_that_peft_takes_for_experts_are_why_the_form_differs(tmp_path) -> None:
    """Without it PEFT drops them: if this fails, PEFT reads them rightly by now, and the other form can go."""
    base = save_base(tmp_path / "base", "deepseek_v3", **BASES["deepseek_v3"])
    factors, files = save_adapter(base)
    assert peft_deltas(base, write(tmp_path / "out", files)).keys() != factors.A.keys()


def test_what_peft_refuses_is_refused(tmp_path) -> None:
    base = save_base(tmp_path / "base", "mamba", state_size=4, time_step_rank=4)
    _, files = save_adapter(base, "in_proj,out_proj")
    with pytest.raises(IncompatibleError, match=r"PEFT cannot load the adapter: .*out_proj") as refused:
        plain_files(files, base, 0)
    assert refused.value.unchanged == "nothing was written"


@pytest.mark.parametrize("fault", ["drop", "swap", "scale", "more"])
def test_whatever_peft_would_do_otherwise_is_seen(fault, tmp_path, monkeypatch) -> None:
    """PEFT's rules changed by hand, each so that it would load without a word."""
    import peft

    base = save_base(tmp_path / "base", "llama")
    _, files = save_adapter(base, "q_proj,v_proj")
    one, other = (f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_A.weight" for layer in (0, 1))
    place, build = peft.set_peft_model_state_dict, peft.get_peft_model

    def moved(model: Any, tensors: dict[str, torch.Tensor], **options: Any) -> Any:
        if fault == "drop":
            tensors = {key: value for key, value in tensors.items() if key != one}
        else:
            tensors = tensors | {one: tensors[other], other: tensors[one]}
        return place(model, tensors, **options)

    def changed(model: Any, config: Any, **options: Any) -> Any:
        if fault == "more":
            config.target_modules = {*config.target_modules, "k_proj"}
        else:
            config.use_rslora = True
        return build(model, config, **options)

    if fault in ("drop", "swap"):
        monkeypatch.setattr(peft, "set_peft_model_state_dict", moved)
    else:
        monkeypatch.setattr(peft, "get_peft_model", changed)
    with pytest.raises(IncompatibleError, match=r"PEFT would refuse or misread the adapter on \d modules: model"):
        plain_files(files, base, 0)


def test_another_base_is_refused(tmp_path) -> None:
    base = save_base(tmp_path / "base", "llama")
    _, files = save_adapter(base)
    config = tmp_path / "base/config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"rms_norm_eps": 0.5}))
    with pytest.raises(IncompatibleError, match=r"its config\.json differs"):
        plain_files(files, base, 0)


def test_no_weight_of_the_base_is_read(tmp_path) -> None:
    base = save_base(tmp_path / "base", "llama")
    _, files = save_adapter(base)
    (tmp_path / "base/model.safetensors").unlink()
    assert plain_files(files, base, 0) == files
