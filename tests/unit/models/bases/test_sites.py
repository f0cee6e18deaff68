"""A matrix is a matrix, however its module keeps it: against plain PEFT, and against the model's own attention."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import lorabank
from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.errors import ConfigError, IncompatibleError
from lorabank.models.bases.blocks import of_modules, of_sites
from lorabank.models.bases.fused import FUSED, blocks_of
from lorabank.models.bases.kinds.split import Split
from lorabank.models.bases.sites import site_of
from lorabank.models.bases.targets import find_targets
from lorabank.models.mixing.mixture import Mixture
from lorabank.training.layers.layer import EffectiveWeights, fold
from tests.unit.training.plain import plain_layers

IDS = torch.tensor([[3, 5, 7, 2, 9], [8, 1, 1, 4, 6]])
R, ALPHA = 3, 6.0
SMALL = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 16, "vocab_size": 16,
    "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FIELDS: dict[str, dict[str, Any]] = {
    "bloom": {"n_head": 3, "n_layer": 1},
    "gpt2": {"n_embd": 24, "n_head": 3, "n_layer": 1},
    "gpt_neox": {},
    "modernbert": {"global_attn_every_n_layers": 1},
    "mpt": {"d_model": 24, "n_heads": 3, "n_layers": 1, "max_seq_len": 32},
    "openai-gpt": {"n_embd": 24, "n_head": 3, "n_layer": 1},
    "phi3": {"num_key_value_heads": 1},
}
ATTENDED = {
    "bloom": "dense", "gpt2": "c_proj", "gpt_neox": "dense", "modernbert": "Wo", "mpt": "out_proj",
    "openai-gpt": "c_proj", "phi3": "o_proj",
}  # fmt: skip
"""What reads the heads' answers."""


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **(SMALL | FIELDS[kind]))
    auto = transformers.AutoModelForMaskedLM if kind == "modernbert" else transformers.AutoModelForCausalLM
    model: nn.Module = auto.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def gpt2() -> transformers.GPT2LMHeadModel:
    return make("gpt2")  # type: ignore[return-value]


def fused_in(model: nn.Module) -> str:
    last = {name for kind, name in FUSED if kind == model.config.model_type}
    return next(name for name, _ in model.named_modules() if name.rpartition(".")[2] in last)


# ------------------------------------------------------------------------------------------------------ Conv1D


def random_factors(model: nn.Module, names: list[str], seed: int) -> LoraFactors:
    dice = torch.Generator().manual_seed(seed)
    sites = [site_of(model, name) for name in names]
    return LoraFactors(
        {site.name: torch.randn(R, site.d_in, generator=dice) / 4 for site in sites},
        {site.name: torch.randn(site.d_out, R, generator=dice) / 4 for site in sites},
        dict.fromkeys(names, ALPHA / R),
    )


def in_peft(names: list[str], factors: LoraFactors) -> nn.Module:
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=names, fan_in_fan_out=True, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(gpt2(), config)
    for name in names:
        layer = theirs.get_submodule(f"base_model.model.{name}")
        layer.lora_A["default"].weight.data.copy_(factors.A[name])
        layer.lora_B["default"].weight.data.copy_(factors.B[name])
    return theirs


@pytest.mark.parametrize("effective", [False, True])
def test_ten_steps_on_gpt2_are_those_of_plain_peft(effective: bool) -> None:
    model = gpt2()
    names = list(find_targets(model, "all-linear", ()).names)
    assert {site_of(model, name).kind for name in names} == {"conv1d"}
    start = random_factors(model, names, 1)
    theirs = in_peft(names, start)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    layers = plain_layers(model, names, r=R, lora_alpha=ALPHA, initial=start)
    refresh = EffectiveWeights(layers.values(), tokens=1e6 if effective else 0)
    assert all((layer.effective is not None) == effective for layer in layers.values())
    ours = [p for p in model.parameters() if p.requires_grad]
    other = [p for p in theirs.parameters() if p.requires_grad]
    assert len(ours) == len(other) == 2 * len(names)
    steps = [torch.optim.SGD(parameters, lr=0.05) for parameters in (ours, other)]
    first = 0.0
    for _ in range(10):
        losses = []
        for network, step in zip((model, theirs), steps, strict=True):
            step.zero_grad()
            losses.append(network(input_ids=IDS, labels=IDS).loss)
            losses[-1].backward()
        torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
        for name, layer in layers.items():
            peer = theirs.get_submodule(f"base_model.model.{name}")
            torch.testing.assert_close(layer.lora_A.grad, peer.lora_A["default"].weight.grad, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(layer.lora_B.grad, peer.lora_B["default"].weight.grad, atol=1e-5, rtol=1e-4)
        for step in steps:
            step.step()
        refresh()
        first = first or losses[0].item()
    assert losses[0].item() < first - 0.05  # it is worth comparing


def test_every_state_of_gpt2_is_that_of_plain_peft() -> None:
    model = gpt2()
    names = list(find_targets(model, "auto", ()).names)
    adapters = {str(k): random_factors(model, names, k) for k in range(2)}
    expected = [in_peft(names, adapters[str(k)])(input_ids=IDS).logits[k] for k in range(2)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bare = model(input_ids=IDS).logits
    mixture = Mixture(model, AdapterStack.build(adapters))
    mixture.merge(torch.tensor([1.0, 0.0]))
    assert model.transformer.h[0].attn.c_attn.weight.shape == (24, 72)
    torch.testing.assert_close(model(input_ids=IDS).logits[0], expected[0], atol=1e-5, rtol=1e-5)
    mixture.per_sample(torch.eye(2))
    torch.testing.assert_close(model(input_ids=IDS).logits, torch.stack(expected), atol=1e-5, rtol=1e-5)
    mixture.off()
    assert torch.equal(model(input_ids=IDS).logits, bare)
    mixture.detach()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fold(model, AdapterStack.build({"0": adapters["0"]}))
    torch.testing.assert_close(model(input_ids=IDS).logits[0], expected[0], atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize("kind", [kind for kind, _ in FUSED])
@torch.no_grad()
def test_the_rows_of_q_k_and_v_are_found_again_in_the_attention(kind: str) -> None:
    """Without v nothing is attended; without k, q says nothing; a q of one token is read by that token alone."""

    def attended(change: str | None = None, zero: str | None = None, at: int | None = None) -> Tensor:
        model = make(kind)
        name = fused_in(model)
        rows = blocks_of(model, name, model.get_submodule(name))
        assert rows is not None
        seen: list[Tensor] = []

        def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            out = out.clone()
            if zero:
                out[..., rows[zero]] = 0
            if change:
                out[:, slice(None) if at is None else at, rows[change]] *= 3
            return out

        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.append(args[0])

        model.get_submodule(name).register_forward_hook(hook)
        last = f"{name.rpartition('.')[0]}.{ATTENDED[kind]}"
        model.get_submodule(last).register_forward_pre_hook(keep)
        model(input_ids=IDS)
        return seen[0]

    plain = attended()
    assert not attended(zero="v").any()
    for one, other in (("q", "k"), ("k", "q")):
        torch.testing.assert_close(attended(change=one, zero=other), attended(zero=other))
        assert not torch.allclose(attended(change=one), plain)
    moved = (attended(change="q", at=1) != plain).any(-1)
    assert moved[:, 1].all()
    assert not moved[:, [0, 2, 3, 4]].any()
    assert (attended(change="k", at=1) != plain).any(-1)[:, 2:].all()


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "phi3"])
def test_an_adapter_on_blocks_is_one_on_the_whole_matrix(kind: str) -> None:
    """Trained on q and v by themselves; then plain PEFT with a block-structured B."""
    model, name = make(kind), ""
    name = fused_in(model)
    targets = find_targets(model, "q,v", ())
    assert targets.names == (f"{name}.q", f"{name}.v")
    assert targets.modules == (name,)
    start = random_factors(model, list(targets.names), 4)
    layers = plain_layers(model, targets.names, r=R, lora_alpha=ALPHA, initial=start)
    assert isinstance(model.get_submodule(name), Split)
    whole = of_modules(start, targets.sites)
    assert whole.A[name].shape[0] == 2 * R
    plain = make(kind)
    rows = blocks_of(plain, name, plain.get_submodule(name))
    assert rows is not None
    assert not whole.B[name][rows["k"]].any()
    for letter in "qv":
        expected = start.delta(f"{name}.{letter}")
        torch.testing.assert_close(whole.delta(name)[rows[letter]], expected, atol=1e-6, rtol=1e-5)
    config = peft.LoraConfig(r=2 * R, lora_alpha=2 * ALPHA, target_modules=[name], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(plain, config)
    peer = theirs.get_submodule(f"base_model.model.{name}")
    peer.lora_A["default"].weight.data.copy_(whole.A[name])
    peer.lora_B["default"].weight.data.copy_(whole.B[name])
    found, expected = (network(input_ids=IDS, labels=IDS) for network in (model, theirs))
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    for output in (found, expected):
        output.loss.backward()
    for i, letter in enumerate("qv"):
        own = layers[f"{name}.{letter}"]
        part = slice(i * R, (i + 1) * R)
        torch.testing.assert_close(own.lora_A.grad, peer.lora_A["default"].weight.grad[part], atol=1e-5, rtol=1e-4)
        of_B = peer.lora_B["default"].weight.grad[rows[letter]][:, part]
        torch.testing.assert_close(own.lora_B.grad, of_B, atol=1e-5, rtol=1e-4)
    back = of_sites(AdapterStack.build({"one": whole}), targets.sites)
    for site in targets.sites:
        assert torch.equal(back.modules[site.name].A, start.A[site.name])
        assert torch.equal(back.modules[site.name].B, start.B[site.name])


def test_a_matrix_and_its_block_are_not_both_adapted() -> None:
    with pytest.raises(
        ConfigError, match=r"means the matrix transformer\.h\.0\.attn\.c_attn and its block .*c_attn\.q"
    ):
        find_targets(gpt2(), "c_attn,c_attn.q", ())


def test_a_block_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"c_attn\.x': no module.*there are .*c_attn\.k, c_attn\.q, c_attn\.v$"):
        find_targets(gpt2(), "c_attn.x", ())


# ------------------------------------------------------------------------------------------- packed, and the rest


class Packed(nn.Linear):
    """As bitsandbytes keeps four bits a number: bytes in place of the matrix."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out)
        self.weight = nn.Parameter(torch.zeros(d_in * d_out // 2, 1, dtype=torch.uint8), requires_grad=False)


class Quantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj, self.up = Packed(4, 4), Packed(4, 4), nn.Linear(4, 4)
        self.norm, self.embed = nn.LayerNorm(4), nn.Embedding(3, 4)


@pytest.mark.parametrize("spec", ["auto", "q_proj"])
def test_a_packed_layer_is_refused_in_one_line(spec: str) -> None:
    with pytest.raises(IncompatibleError, match=r"Packed keeps its weight packed \(uint8 \[8, 1\]\)") as error:
        find_targets(Quantised(), spec, ())
    assert "\n" not in str(error.value)


def test_no_adapter_is_put_on_a_packed_layer() -> None:
    model = Quantised()
    stack = AdapterStack.build({"a": LoraFactors({"up": torch.ones(1, 4)}, {"up": torch.ones(4, 1)}, {"up": 1.0})})
    packed = AdapterStack(stack.names, {"q_proj": stack.modules["up"]})
    for use in (lambda: fold(model, packed), lambda: Mixture(model, packed), lambda: site_of(model, "q_proj")):
        with pytest.raises(IncompatibleError, match="'q_proj' cannot be adapted: Packed keeps its weight packed"):
            use()


def test_what_is_not_adapted_is_named_with_the_reason() -> None:
    found = find_targets(Quantised(), "all-linear", ())
    assert found.names == ("up",)
    assert found.not_adapted == (
        "2 Packed, such as q_proj: Packed keeps its weight packed (uint8 [8, 1]), which lorabank does not read",
        "1 LayerNorm, such as norm: not a kind of module that an adapter can change",
        "1 Embedding, such as embed: not among the target modules",
    )


def test_a_site_reads_its_weight_as_a_matrix() -> None:
    model = nn.ModuleDict({"linear": nn.Linear(3, 5).bfloat16(), "conv1d": Conv1D(5, 3)})
    linear, conv1d = site_of(model, "linear"), site_of(model, "conv1d")
    assert (linear.d_out, linear.d_in) == (conv1d.d_out, conv1d.d_in) == (5, 3)
    assert linear.weight().dtype == torch.float32
    assert torch.equal(conv1d.weight(), model["conv1d"].weight.T)
    assert conv1d.weight().data_ptr() == model["conv1d"].weight.data_ptr()
    with pytest.raises(IncompatibleError, match="no module 'other'"):
        site_of(model, "other")


# ---------------------------------------------------------------------------------------------- the only place

EXCEPTIONS = {
    "models/bases/sites.py": "the only place",
    "models/bases/kinds/base.py": "gives a module the weight that sites.py has made",
    "models/bases/kinds/bias.py": "a bias, which it gives out as a weight",
    "models/bases/kinds/convolution.py": "its groups, as convolutions of their own",
    "models/bases/kinds/experts.py": "puts an expert's matrix into its place in the stack",
    "models/bases/kinds/embedding.py": "tries what a subclass computes, on a weight of its own",
    "models/bases/kinds/linear.py": "tries what a subclass computes, on a weight of its own",
    "models/bases/kinds/attention.py": "makes each part of torch's fused projection a linear layer",
    "training/run.py": "the weight of each class in the loss",
    "training/strategies/olora_distil.py": "the weight of each class in the loss",
    "models/tuners/library.py": "reads the delta weight that PEFT's own merge leaves",
    "workflows/carrying/merged.py": "writes the tensors of a merged base",
    "workflows/carrying/checkpoint.py": "merges into a copy that is written as a whole model",
    "models/bases/loading.py": "counts the rows of the embeddings: the words that the model knows",
}


def test_no_other_file_touches_the_weight_of_a_module() -> None:
    root = Path(lorabank.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        asked_for = {id(node.func) for node in nodes if isinstance(node, ast.Call)}  # `Site.weight()`
        for node in nodes:
            named = isinstance(node, ast.Attribute) and node.attr == "weight" and id(node) not in asked_for
            asked = (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "get_parameter"
                and ".weight" in ast.unparse(node)
            )
            if named or asked:
                found.add(path.relative_to(root).as_posix())
    assert found == set(EXCEPTIONS)
