"""The experts of a mixture as linear layers: against parameters of three dimensions in transformers and in PEFT."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.records import BaseModelRecord
from lorabank.exchange.peft_check import plain_files
from lorabank.exchange.peft_folder import CONFIG_FILE, adapter_files, read_adapter, read_shapes, read_stack
from lorabank.models.bases.fingerprint import config_hash, read_json
from lorabank.models.bases.kinds.experts import Experts, stored_parameters, unroll_experts
from lorabank.models.bases.targets import find_targets
from lorabank.models.mixing.mixture import Mixture
from tests.unit.training.plain import plain_layers

IDS = torch.tensor([[3, 5, 7, 2, 9], [8, 1, 1, 4, 6]])
R, ALPHA = 2, 3.0
SMALL = {
    "vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "moe_intermediate_size": 12, "num_key_value_heads": 2, "max_position_embeddings": 32, "num_experts_per_tok": 2,
    "head_dim": 8, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 3},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 12},
    "qwen3_moe": {"num_experts": 4},
    "olmoe": {"num_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "num_experts": 4},
}


def config_of(kind: str) -> Any:
    return transformers.AutoConfig.for_model(kind, **(SMALL | KINDS[kind]))


def make(kind: str, *, unrolled: bool) -> nn.Module:
    torch.manual_seed(0)
    auto = transformers.AutoModelForCausalLM
    model: nn.Module = auto.from_config(config_of(kind), attn_implementation="eager").eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.requires_grad_(False)
    if unrolled:
        unroll_experts(model)
    return model


def names(kind: str) -> list[str]:
    found = find_targets(make(kind, unrolled=True), "all-linear", ()).names
    return [name for name in found if ".experts." in name]


def split(name: str) -> tuple[str, int]:
    parameter, _, number = name.rpartition(".")
    return parameter, int(number)


def adapter(kind: str, seed: int, chosen: list[str], r: int = R) -> LoraFactors:
    model, dice = make(kind, unrolled=True), torch.Generator().manual_seed(seed)
    layers = {name: model.get_submodule(name) for name in chosen}
    return LoraFactors(
        {name: torch.randn(r, layer.in_features, generator=dice) / 4 for name, layer in layers.items()},
        {name: torch.randn(layer.out_features, r, generator=dice) / 4 for name, layer in layers.items()},
        dict.fromkeys(chosen, ALPHA / R),
    )


def transposed(kind: str) -> bool:
    return kind == "gpt_oss"


def changed(kind: str, *terms: tuple[float, LoraFactors]) -> nn.Module:
    """The model as transformers has it, with adapters added to its parameters of three dimensions."""
    model = make(kind, unrolled=False)
    for weight, factors in terms:
        for name in factors.A:
            parameter, e = split(name)
            delta = weight * factors.delta(name)
            model.get_parameter(parameter)[e] += delta.T if transposed(kind) else delta
    return model


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_untouched_experts_answer_by_their_own_kernel(kind: str) -> None:
    model, plain = make(kind, unrolled=True), make(kind, unrolled=False)
    assert sum(isinstance(module, Experts) for module in model.modules()) == 2
    assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    for name in names(kind):
        parameter, e = split(name)
        matrix = plain.get_parameter(parameter)[e]
        own = model.get_submodule(name).weight
        assert torch.equal(own, matrix.T if transposed(kind) else matrix)
        stem, _, short = parameter.rpartition(".")
        kept = model.get_submodule(stem).base.get_parameter(short)[e]
        assert own.data_ptr() == kept.data_ptr()  # nothing lies in memory twice


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_hook_on_one_expert_sees_its_tokens(kind: str) -> None:
    """Each of two tokens goes to two experts of a layer; without the hook the kernel answers again."""
    model, plain = make(kind, unrolled=True), make(kind, unrolled=False)
    seen: list[tuple[str, int]] = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, n=name: seen.append((n, len(args[0]))))
        for name in names(kind)
    ]
    torch.testing.assert_close(model(input_ids=IDS[:1, :2]).logits, plain(input_ids=IDS[:1, :2]).logits)
    for part in ("gate_up_proj", "down_proj"):
        assert sum(tokens for name, tokens in seen if f".{part}." in name) == 2 * 2 * 2
    for hook in hooks:
        hook.remove()
    seen.clear()
    assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    assert not seen


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_stored_once(kind: str) -> None:
    stored = dict(stored_parameters(make(kind, unrolled=True)))
    plain = dict(make(kind, unrolled=False).named_parameters())
    assert sum(one.numel() for one in stored.values()) == sum(one.numel() for one in plain.values())
    assert {name.replace(".experts.base.", ".experts.") for name in stored} == plain.keys()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_expert_is_reached_and_merged(kind: str) -> None:
    chosen = names(kind)
    count = config_of(kind).num_local_experts if kind == "mixtral" else 4
    assert len(chosen) == 2 * 2 * count
    one, two = adapter(kind, 1, chosen), adapter(kind, 2, chosen[::3], r=1)
    model = make(kind, unrolled=True)
    bare = model(input_ids=IDS).logits
    mixture = Mixture(model, AdapterStack.build({"one": one, "two": two}))
    mixture.merge(torch.tensor([0.5, -1.0]))
    expected = changed(kind, (0.5, one), (-1.0, two))(input_ids=IDS).logits
    torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, bare, atol=1e-2)
    assert not mixture.mixes  # an expert's tokens do not say whose they are
    mixture.off()
    torch.testing.assert_close(model(input_ids=IDS).logits, bare, rtol=1e-5, atol=1e-5)
    mixture.detach()
    assert torch.equal(model(input_ids=IDS).logits, bare)


@pytest.mark.parametrize("kind", KINDS)
def test_the_factors_learn_from_the_gradient_of_the_parameter(kind: str) -> None:
    chosen = names(kind)
    start = adapter(kind, 3, chosen)
    model = make(kind, unrolled=True)
    layers = plain_layers(model, chosen, r=R, lora_alpha=ALPHA, initial=start)
    peer = changed(kind, (1.0, start))
    parameters = {parameter: peer.get_parameter(parameter).requires_grad_() for parameter, _ in map(split, chosen)}
    losses = []
    for network in (model, peer):
        losses.append(torch.nn.functional.cross_entropy(network(input_ids=IDS).logits.flatten(0, 1), IDS.flatten()))
        losses[-1].backward()
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    for name, layer in layers.items():
        parameter, e = split(name)
        of_matrix = parameters[parameter].grad[e]
        of_matrix = of_matrix.T if transposed(kind) else of_matrix
        s, (A, B) = ALPHA / R, (start.A[name], start.B[name])
        for leaf, expected in ((layer.lora_A, s * B.T @ of_matrix), (layer.lora_B, s * of_matrix @ A.T)):
            found = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad  # no token was sent there
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def base_of(kind: str, folder: Path) -> BaseModelRecord:
    make(kind, unrolled=False).save_pretrained(folder)
    return BaseModelRecord(
        name=str(folder), source="local", revision=None, config_hash=config_hash(read_json(folder / "config.json")),
        fingerprint="", tokenizer_hash="", dtype="float32", task_type="CAUSAL_LM", hidden_size=16, parameters=0,
    )  # fmt: skip


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_is_plain_pefts(kind: str, rslora: bool, tmp_path: Path) -> None:
    """Beside an attention's projection; some experts have no adapter, and one has a lower rank."""
    base = base_of(kind, tmp_path / "base")
    chosen = names(kind)
    query = next(name for name in find_targets(make(kind, unrolled=True), "auto", ()).names)
    s = ALPHA / R**0.5 if rslora else ALPHA / R
    one = adapter(kind, 1, [query, *chosen[1:-1]])
    A, B = dict(one.A), dict(one.B)
    short = chosen[2]
    A[short], B[short] = A[short][:1], B[short][:, :1]
    scaling = dict.fromkeys(A, s) | {short: s}
    factors = LoraFactors(A, B, scaling)
    files = plain_files(
        adapter_files(
            factors, {}, base_model=base.name, task_type="CAUSAL_LM", r=R, lora_alpha=ALPHA, use_rslora=rslora,
            head_modules=(),
        ),
        base,
        0,
    )  # fmt: skip
    folder = tmp_path / "out"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    model = transformers.AutoModelForCausalLM.from_pretrained(base.name, attn_implementation="eager")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(model, folder).eval()(input_ids=IDS).logits
    ours = make(kind, unrolled=True)
    mixture = Mixture(ours, AdapterStack.build({"one": factors}))
    mixture.merge(torch.ones(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(input_ids=IDS).logits, theirs, rtol=1e-5, atol=1e-5)
    config = json.loads((folder / CONFIG_FILE).read_text())
    assert config["target_modules"] == [query]
    assert len(config["target_parameters"]) == 4
    back, _, _ = read_adapter(folder)
    assert read_shapes(folder).keys() == back.A.keys() >= factors.A.keys()
    stack = read_stack({"one": folder}, device="cpu", dtype=torch.float32)
    for name in back.A:
        wanted: Tensor = factors.delta(name) if name in factors.A else torch.zeros_like(back.delta(name))
        torch.testing.assert_close(back.delta(name), wanted)
        torch.testing.assert_close(stack.modules[name].delta(torch.ones(1)), wanted)
    assert plain_files(files, base, 0) == files  # what lies in the bank is exported as it is


def test_a_name_means_the_matrix_of_all_experts() -> None:
    model = make("mixtral", unrolled=True)
    found = find_targets(model, "gate_up_proj", ()).names
    assert len(found) == 2 * 3
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in found} == {"gate_up_proj"}
    assert find_targets(model, "experts.down_proj.1", ()).names == tuple(
        f"model.layers.{i}.mlp.experts.down_proj.1" for i in range(2)
    )
