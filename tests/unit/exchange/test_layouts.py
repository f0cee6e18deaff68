"""Adapters on tables and convolutions as PEFT keeps, trains, loads and answers them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.errors import DataError, IncompatibleError
from lorabank.exchange.config_fields import parse
from lorabank.exchange.dora import from_dora
from lorabank.exchange.layouts import check_layout, laid_out
from lorabank.exchange.peft_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapter_files,
    combined_files,
    read_adapter,
    read_factors,
    read_shapes,
    read_stack,
)
from lorabank.exchange.untrusted_adapter import read_foreign
from lorabank.models.bases.blocks import of_modules
from lorabank.models.bases.sites import site_of
from lorabank.models.bases.targets import find_targets
from lorabank.models.mixing.mixture import Mixture
from tests.unit.training.plain import plain_layers

R, ALPHA = 2, 3.0
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(1))


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "embedding": (lambda: nn.Embedding(11, 4, padding_idx=2), tokens(3, 6)),
    "scaled": (lambda: BartScaledWordEmbedding(11, 4, 1, embed_scale=3.0), tokens(3, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2), numbers(3, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0)), numbers(3, 4, 7, 6)),
    "conv2d of width 1": (lambda: nn.Conv2d(4, 6, 1, bias=False), numbers(3, 4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (1, 1, 3), padding=(0, 0, 1)), numbers(3, 2, 3, 2, 5)),
    "groups": (lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2), numbers(3, 4, 9)),
}  # fmt: skip
WHOLE = [name for name in CASES if name != "groups"]


class Holder(nn.Module):
    """A model with one module."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.it = make()
        for parameter in self.it.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.it(x)


def holder(name: str) -> Holder:
    return Holder(CASES[name][0]).eval()


def start(model: Holder, seed: int, r: int = R, *, gain: bool = False) -> LoraFactors:
    """A random adapter by site."""
    sites = find_targets(model, "it", ()).sites
    dice = torch.Generator().manual_seed(seed)
    A = {site.name: torch.randn(r, site.d_in, generator=dice) for site in sites}
    B = {site.name: torch.randn(site.d_out, r, generator=dice) for site in sites}
    gains = {site.name: 1 + 0.3 * torch.randn(site.d_out, generator=dice) for site in sites} if gain else {}
    return LoraFactors(A, B, dict.fromkeys(A, ALPHA / R), gains)


def whole(model: Holder, factors: LoraFactors) -> LoraFactors:
    return of_modules(factors, find_targets(model, "it", ()).sites)


def write(folder: Path, model: Holder, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in laid_out(files, model).items():
        (folder / name).write_bytes(data)
    return folder


def folder_of(path: Path, model: Holder, factors: LoraFactors) -> Path:
    settings = {"base_model": "b", "task_type": None, "r": R, "lora_alpha": ALPHA, "use_rslora": False}
    weight = site_of(model, "it").weight()
    return write(path, model, adapter_files(factors, {}, head_modules=(), weight=lambda _: weight, **settings))


def in_peft(model: Holder, folder: Path, x: Tensor) -> Tensor:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(model, folder).eval()(x)


def merged(name: str, weights: list[float], *adapters: LoraFactors) -> Tensor:
    model = holder(name)
    mixture = Mixture(model, AdapterStack.build({f"{k}": one for k, one in enumerate(adapters)}))
    mixture.merge(torch.tensor(weights))
    with torch.no_grad():
        return model(CASES[name][1])


@pytest.mark.parametrize("gain", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", CASES)
def test_a_folder_answers_in_plain_peft_as_the_adapter_does_here(name: str, gain: bool, tmp_path: Path) -> None:
    if gain and name == "groups":
        pytest.skip("PEFT's DoRA knows no groups; refused below")
    factors = whole(holder(name), start(holder(name), 1, gain=gain))
    folder = folder_of(tmp_path / "one", holder(name), factors)
    torch.testing.assert_close(
        in_peft(holder(name), folder, CASES[name][1]), merged(name, [1.0], factors), rtol=1e-5, atol=2e-5
    )
    back, _, config = read_adapter(folder)
    assert config["use_dora"] is gain
    weight = site_of(holder(name), "it").weight()
    for found in (back, read_factors(folder)):
        torch.testing.assert_close(found.delta("it", weight), factors.delta("it", weight), **CLOSE)
    stack = read_stack({"one": folder}, device="cpu", dtype=torch.float32)
    torch.testing.assert_close(stack.modules["it"].delta(torch.ones(1), weight), factors.delta("it", weight), **CLOSE)
    shape = read_shapes(folder)["it"]
    assert (shape.d_out, shape.d_in) == tuple(weight.shape)


@pytest.mark.parametrize("name", CASES)
def test_a_sum_of_adapters_is_one_folder(name: str, tmp_path: Path) -> None:
    """Of groups the rows are sorted by the groups that they write into, and filled up where those are not alike."""
    one, two = (whole(holder(name), start(holder(name), k, r=k)) for k in (1, 3))
    if name == "groups":  # the second one changes the first group alone
        B = two.B["it"].clone()
        B[3:] = 0
        two = LoraFactors(two.A, {"it": B}, two.scaling)
    joined = AdapterStack.build({"one": one, "two": two}).combine(torch.tensor([0.5, -2.0]))
    files = combined_files(joined, {}, base_model="b", task_type=None, head_modules=())
    folder = write(tmp_path / "sum", holder(name), files)
    torch.testing.assert_close(
        in_peft(holder(name), folder, CASES[name][1]), merged(name, [0.5, -2.0], one, two), rtol=1e-5, atol=2e-5
    )
    again = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert laid_out(again, holder(name)).keys() == again.keys()
    torch.testing.assert_close(read_factors(folder).delta("it"), joined.delta("it"), **CLOSE)


@pytest.mark.parametrize("name", WHOLE)
def test_a_step_with_dropout_is_plain_pefts(name: str) -> None:
    """The same entries are dropped: of a convolution's input, and nothing of a table's."""
    factors = start(holder(name), 4)
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["it"], lora_dropout=0.3)
    theirs = peft.get_peft_model(holder(name), config).train()
    layer = theirs.base_model.model.it
    own = site_of(holder(name), "it")
    stored = own.of_kind.in_peft(own.module, factors.A["it"], factors.B["it"])
    peers = []
    for ending, tensor in stored.items():
        parts = ending.removesuffix(".weight")
        parameter = getattr(layer, parts)["default"]
        parameter = parameter if isinstance(parameter, nn.Parameter) else parameter.weight
        parameter.data.copy_(tensor)
        peers.append(parameter)
    model = holder(name).requires_grad_(False).train()
    (mine,) = plain_layers(model, ["it"], r=R, lora_alpha=ALPHA, initial=factors, dropout=0.3).values()
    answers = []
    for network in (model, theirs):
        torch.manual_seed(8)
        answers.append(network(CASES[name][1]))
        answers[-1].square().sum().backward()
    torch.testing.assert_close(*answers, **CLOSE)
    for leaf, peer in zip((mine.lora_A, mine.lora_B), peers, strict=True):
        torch.testing.assert_close(leaf.grad, peer.grad.view_as(leaf), rtol=1e-4, atol=1e-4)


def save_pefts(folder: Path, name: str, *, dora: bool = False, r: int = R) -> tuple[peft.PeftModel, Path]:
    """An adapter of PEFT's own, with random numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=r, lora_alpha=ALPHA, target_modules=["it"], use_dora=dora)
        model = peft.get_peft_model(holder(name), config)
        torch.manual_seed(3)
        for key, parameter in model.named_parameters():
            if "lora" in key:
                nn.init.uniform_(parameter, 0.5, 1.5) if "magnitude" in key else nn.init.normal_(parameter)
        model.save_pretrained(folder)
    return model.eval(), folder


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", WHOLE)
def test_a_folder_of_pefts_own_is_the_adapter_that_it_answers_with(name: str, dora: bool, tmp_path: Path) -> None:
    theirs, folder = save_pefts(tmp_path / "theirs", name, dora=dora)
    found = read_foreign(parse((folder / CONFIG_FILE).read_bytes()), (folder / WEIGHTS_FILE).read_bytes())
    site = site_of(holder(name), "it")
    assert check_layout(site, found.factors, found.windows["it"], gained=dora) is None
    factors = from_dora(found.factors, found.magnitude, lambda _: site.weight()) if dora else found.factors
    with torch.no_grad():
        expected = theirs(CASES[name][1])
    torch.testing.assert_close(merged(name, [1.0], factors), expected, rtol=1e-4, atol=1e-4)


def test_pefts_adapter_on_groups_reads_other_groups_and_is_not_taken(tmp_path: Path) -> None:
    _, folder = save_pefts(tmp_path / "theirs", "groups", r=4)
    found = read_foreign(parse((folder / CONFIG_FILE).read_bytes()), (folder / WEIGHTS_FILE).read_bytes())
    site = site_of(holder("groups"), "it")
    reason = check_layout(site, found.factors, found.windows["it"], gained=False)
    assert reason == "its lora_A reads the channels of other groups, which the convolution does not"
    ours = folder_of(tmp_path / "ours", holder("groups"), whole(holder("groups"), start(holder("groups"), 1)))
    found = read_foreign(parse((ours / CONFIG_FILE).read_bytes()), (ours / WEIGHTS_FILE).read_bytes())
    assert check_layout(site, found.factors, found.windows["it"], gained=False) is None


def test_a_kernel_of_another_shape_is_not_taken(tmp_path: Path) -> None:
    """Of (2, 3) and (3, 2) the flattened sizes are equal."""
    _, folder = save_pefts(tmp_path / "theirs", "conv2d")
    found = read_foreign(parse((folder / CONFIG_FILE).read_bytes()), (folder / WEIGHTS_FILE).read_bytes())
    other = site_of(Holder(lambda: nn.Conv2d(4, 6, (2, 3))), "it")
    reason = check_layout(other, found.factors, found.windows["it"], gained=False)
    assert reason == "its lora_A reads [4, 3, 2], the base's module [4, 2, 3]"


FAULTS: dict[str, Callable[[], nn.Module]] = {
    "lora_A has no dilation": lambda: nn.Conv1d(4, 6, 3, dilation=2, padding="same"),
    "lora_A pads with zeros, not circular": lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_peft_computes_otherwise_is_not_handed_to_it(fault: str, tmp_path: Path) -> None:
    """Shown by PEFT itself: what it answers is not what it merges."""
    model, x = Holder(FAULTS[fault]), numbers(3, 4, 9)
    theirs = peft.get_peft_model(Holder(FAULTS[fault]), peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["it"]))
    torch.manual_seed(3)
    nn.init.normal_(theirs.base_model.model.it.lora_B["default"].weight)
    with torch.no_grad():
        apart = theirs(x)
        together = theirs.merge_and_unload()(x)
    assert float((apart - together).abs().max()) > 0.1
    with pytest.raises(IncompatibleError, match=rf"PEFT would answer otherwise .*'it': PEFT's {fault}") as caught:
        folder_of(tmp_path / "one", model, start(model, 1))
    assert "\n" not in str(caught.value)
    site = site_of(model, "it")
    assert fault in (check_layout(site, start(model, 1), (4, 3), gained=False) or "")


def test_a_dora_on_groups_is_not_handed_to_peft(tmp_path: Path) -> None:
    model = holder("groups")
    with pytest.raises(IncompatibleError, match="PEFT's DoRA knows no groups"):
        folder_of(tmp_path / "one", model, whole(model, start(model, 1, gain=True)))


def test_ranks_and_scalings_of_groups_follow(tmp_path: Path) -> None:
    """Another rank than the config's is named in its patterns, with the alpha that gives the same scaling."""
    model = holder("groups")
    factors = whole(model, start(model, 1))
    B = factors.B["it"].clone()
    B[3:] = 0  # the second group learnt nothing: R rows are filled with zeros
    factors = LoraFactors({"it": factors.A["it"][:3]}, {"it": B[:, :3]}, factors.scaling)
    folder = folder_of(tmp_path / "one", model, factors)
    config = json.loads((folder / CONFIG_FILE).read_text())
    assert config["rank_pattern"]["it"] == 2 * R
    assert config["alpha_pattern"]["it"] == pytest.approx(2 * R * ALPHA / R)
    torch.testing.assert_close(
        in_peft(holder("groups"), folder, CASES["groups"][1]), merged("groups", [1.0], factors), **CLOSE
    )


@pytest.mark.parametrize(
    ("a", "b"), [((2, 4, 3), (6, 2)), ((2, 4, 3), (6, 2, 2)), ((3, 4, 3), (6, 2, 1)), ((2, 4, 3), (5, 1, 1))]
)
def test_kernels_that_are_no_factors_are_refused(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    from safetensors.torch import save

    config = {"peft_type": "LORA", "r": a[0], "lora_alpha": 2, "target_modules": ["it"]}
    names = ("base_model.model.it.lora_A.weight", "base_model.model.it.lora_B.weight")
    weights = save({name: torch.ones(shape) for name, shape in zip(names, (a, b), strict=True)})
    with pytest.raises(DataError, match="the factors of 'it' have the shapes"):
        read_foreign(config, weights)
