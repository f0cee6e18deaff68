"""Every variant and start: begins at the base, is its own fold, and steps as PEFT's tuner does."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.shelves import STARTS, STRATEGIES, VARIANTS
from lorabank.models.bases.blocks import of_modules
from lorabank.models.bases.sites import bias_of
from lorabank.models.bases.targets import find_targets
from lorabank.models.mixing.mixture import Mixture
from lorabank.training.context import TrainContext
from lorabank.training.layers.attaching import Attached, attach
from lorabank.training.layers.live import Live
from lorabank.training.methods import chosen_methods, found_targets
from lorabank.training.variants.base import FreeFactors, Parametrization

R, ALPHA, RATE, STEPS = 3, 6.0, 0.03, 10
IDS = torch.arange(36).view(3, 12) * 7 % 30
Q_V = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}


def load(bases: dict[str, str], kind: str) -> nn.Module:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if kind == "bert" else AutoModelForCausalLM
    torch.manual_seed(2)  # of the head
    return auto.from_pretrained(bases[kind]).eval().requires_grad_(False)


def loss(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    """Cross entropy of the class or token 1, at a temperature: the tiny models' logits are large."""
    scores = (model(input_ids=ids).logits / 10).log_softmax(-1)
    return -scores[..., 1].mean()


def close(found: Tensor, expected: Tensor, to: float = 1e-5) -> None:
    """To a share of the largest entry."""
    found, expected = found.detach(), expected.detach()
    assert float((found - expected).abs().max()) <= to * max(1.0, float(expected.abs().max()))


def close_layers(model: nn.Module, base: nn.Module, *adapters: LoraFactors) -> None:
    """Every linear layer answers what it reads by W and all adapters' delta weights, which are summed here in float64.

    A float32 sum of n products lies within ``n 2^-24`` of its exact value, as a share of the sum of their sizes, in
    whatever order a processor adds them. n is the number of inputs and ranks, and 8 for what is rounded on the way.
    The layers are compared, and not the logits: attention that is nearly decided passes the rounding of a weight on
    a thousandfold.

    Args:
        model: Makes one pass.
        base: The untouched base.
        adapters: By module, over the untouched base.
    """
    sites = find_targets(base, "all-linear", ()).sites
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str, _: nn.Module, inputs: tuple[Tensor, ...], answer: Tensor) -> None:
        seen[name] = inputs[0].double(), answer.double()

    names = [site.module_name for site in sites]
    hooks = [model.get_submodule(name).register_forward_hook(partial(note, name)) for name in names]
    with torch.no_grad():
        model(input_ids=IDS)
    for hook in hooks:
        hook.remove()
    for site, name in zip(sites, names, strict=True):
        W, bias = site.weight().double(), bias_of(site.module)
        shift = W.new_zeros(len(W)) if bias is None else bias.double()
        total, sizes, n = W, W.abs(), W.shape[1] + 8
        for one in adapters:
            if f"{name}.bias" in one.A:
                shift = shift + one.delta(f"{name}.bias").squeeze(1).double()
            if name in one.A:
                A, B = one.A[name].double(), one.scaling[name] * one.B[name].double()
                total, sizes, n = total + B @ A, sizes + B.abs() @ A.abs(), n + len(A)
            if name in one.gain:
                rows = (one.gain[name].double() - 1)[:, None] * W
                total, sizes = total + rows, sizes + rows.abs()
        x, found = seen[name]
        room = n * 2**-24 * (x.abs() @ sizes.mT + shift.abs())
        assert bool(((found - x @ total.mT - shift).abs() <= room).all()), name


SMALL = {"qa-lora": ("qa-lora.group=8",)}
"""Settings for a base of 32 inputs, whose mean is 0 behind a normalisation."""


class Trial:
    """A variant on a model, trained by plain loops."""

    def __init__(self, model: nn.Module, targets: str, past: LoraFactors | None = None, **config: Any) -> None:
        own = {"r": R, "lora_alpha": ALPHA, "lora_dropout": 0.0, "learning_rate": RATE, "target_modules": targets}
        own["set"] = SMALL.get(config.get("variant", ""), ())
        self.config = TrainConfig(**own | goes_with(**config))
        methods, self.model = chosen_methods(self.config), model
        self.sites = found_targets(model, self.config, ()).sites
        earlier = AdapterStack.build({"past": past}) if past else None
        rest: Any = dict(initial=None, objects={}, batches=lambda: (), mean=None, rows=len(IDS))
        rest["inputs"] = lambda rows, head=None: {"input_ids": IDS[list(rows)]}
        rest["loss"] = lambda model, inputs: loss(model, inputs["input_ids"])
        self.context = TrainContext(model, self.sites, self.config, number=0, earlier=earlier, **rest)
        torch.manual_seed(5)
        self.attached: Attached = attach(self.context, methods.variant.parametrize(self.context, methods.start))
        self.parametrization: Parametrization = self.attached.parametrization
        self.live = Live(model, self.attached.layers, self.parametrization)

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not self.live.derives(parameter):
                yield name, parameter

    def optimizer(self, kind: type[torch.optim.Optimizer], rate: float = RATE) -> torch.optim.Optimizer:
        apart = self.parametrization.groups(rate)
        taken = {id(p) for group in apart for p in group["params"]}
        return kind([{"params": [p for _, p in self.trained() if id(p) not in taken]}, *apart], lr=rate)

    def backward(self) -> Tensor:
        value = loss(self.model)
        value.backward()
        self.live.pull()
        return value

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad()
        value = self.backward()
        optimizer.step()
        self.live.refresh()
        return value

    def folded(self) -> LoraFactors:
        fold = self.parametrization.fold()
        A, B, gain = ({k: t.detach() for k, t in part.items()} for part in (fold.A, fold.B, fold.gain))
        return of_modules(LoraFactors(A, B, fold.scaling, gain), self.sites)


def goes_with(**config: Any) -> dict[str, Any]:
    """The settings, with the first strategy that takes them where the default one does not."""
    names = [config["strategy"]] if "strategy" in config else [TrainConfig.strategy, *STRATEGIES]
    return config | {"strategy": next((name for name in names if _goes(**config | {"strategy": name})), names[0])}


@cache
def _goes(**config: Any) -> bool:
    try:
        chosen_methods(TrainConfig(**config))
    except ConfigError:
        return False
    return True


def pairs() -> list[tuple[str, str]]:
    every = [(variant, start) for variant in VARIANTS for start in STARTS]
    return [(variant, start) for variant, start in every if _goes(**goes_with(variant=variant, start=start))]


@pytest.mark.parametrize(("variant", "start"), pairs())
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_training_begins_at_the_base_and_ends_at_its_fold(
    bases, make_adapter, kind: str, variant: str, start: str
) -> None:
    """Over the untouched base, with a past and on blocks of a fused matrix, in the layers and in a sum of adapters."""
    if (kind, variant) == ("llama", "bitfit"):
        pytest.skip("it has no biases")
    base, plain, model = (load(bases, kind) for _ in range(3))
    modules = {site.module_name: (*site.weight().shape,) for site in find_targets(base, "all-linear", ()).sites}
    past = make_adapter(modules, 2, 1.0, seed=1)
    trial = Trial(model, "auto", past, variant=variant, start=start)
    close_layers(model, base, past)
    optimizer = trial.optimizer(torch.optim.AdamW, RATE / 2)
    begun = model(input_ids=IDS).logits.detach()
    for _ in range(3):
        trial.step(optimizer)
    assert float((model(input_ids=IDS).logits.detach() - begun).abs().max()) > 1e-2
    new = trial.folded()
    close_layers(model, base, past, new)
    Mixture(plain, AdapterStack.build({"past": past, "new": new})).merge(torch.tensor([1.0, 1.0]))
    close_layers(plain, base, past, new)


SETTINGS = {
    ("dora", "kaiming"): {"use_dora": True},
    ("lora", "pissa"): {"init_lora_weights": "pissa"},
    ("lora", "olora"): {"init_lora_weights": "olora"},
    ("lora", "kaiming"): {},
}


CASES = [(kind, *one) for kind in Q_V for one in SETTINGS if (kind, one[1]) != ("gpt2", "olora")]
"""PEFT takes the weight of a Conv1D for its transpose in OLoRA's start."""


@pytest.mark.parametrize(("kind", "variant", "start"), CASES)
def test_ten_steps_are_those_of_peft(bases, kind: str, variant: str, start: str) -> None:
    """In float64, in which roundings stay far below what is compared; DoRA, whose norms are float32, step by step."""
    targets = ",".join(Q_V[kind])
    trial = Trial(load(bases, kind), targets, variant=variant, start=start)
    theirs = in_peft(load(bases, kind), kind, trial, **SETTINGS[variant, start])
    gains = chosen_methods(trial.config).variant.gains
    if not gains:
        trial.model.double()
        theirs.double()
    ours, other = (
        trial.optimizer(torch.optim.SGD),
        torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=RATE),
    )
    first = 0.0
    for _ in range(STEPS):
        if gains:
            follow(trial, theirs)
        close(trial.model(input_ids=IDS).logits, theirs(input_ids=IDS).logits)
        ours.zero_grad()
        value = trial.backward()
        other.zero_grad()
        loss(theirs).backward()
        close_gradients(trial, theirs)
        ours.step()
        other.step()
        trial.live.refresh()
        first = first or value.item()
    assert value.item() < first - 1e-3  # it is worth comparing


def test_the_optimizer_of_lora_plus_is_that_of_peft(bases) -> None:
    """Without a head: PEFT gives the bias of one B's learning rate."""
    trial = Trial(load(bases, "llama"), "q_proj,v_proj", variant="lora-plus", set=("ratio=8",))
    theirs = in_peft(load(bases, "llama"), "llama", trial)
    for model in (trial.model, theirs):  # AdamW divides small gradients by their size, and their roundings too
        model.double()
    other = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=8, loraplus_weight_decay=0.01
    )
    ours = trial.optimizer(torch.optim.AdamW, 1e-3)
    for _ in range(STEPS):
        trial.step(ours)
        other.zero_grad()
        loss(theirs).backward()
        other.step()
    for name, layer in trial.attached.layers.items():
        peer = theirs.get_submodule(f"base_model.model.{name}")
        torch.testing.assert_close(layer.lora_A.detach(), peer.lora_A["default"].weight.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer.lora_B.detach(), peer.lora_B["default"].weight.detach(), atol=1e-5, rtol=1e-5)


def in_peft(model: nn.Module, kind: str, trial: Trial, **settings: Any) -> nn.Module:
    config = peft.LoraConfig(
        r=R, lora_alpha=ALPHA, target_modules=Q_V[kind], fan_in_fan_out=kind == "gpt2", **settings
    )
    theirs = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, layer in trial.attached.layers.items():
            peer = theirs.get_submodule(f"base_model.model.{name}")
            A, B, W = peer.lora_A["default"].weight, peer.lora_B["default"].weight, peer.base_layer.weight
            for tensor, own in ((A, layer.lora_A), (B, layer.lora_B), (W, layer.base.weight)):
                if "init_lora_weights" in settings:
                    torch.testing.assert_close(tensor, own.data, rtol=1e-4, atol=1e-5)
                tensor.copy_(own)
    return theirs


@torch.no_grad()
def follow(trial: Trial, theirs: nn.Module) -> None:
    """Give PEFT's DoRA the parameters of ours, so that differences of single steps do not add up."""
    free: Any = trial.parametrization
    for k, name in enumerate(trial.attached.layers):
        peer = theirs.get_submodule(f"base_model.model.{name}")
        peer.lora_A["default"].weight.copy_(free.A[k])
        peer.lora_B["default"].weight.copy_(free.B[k])
        peer.lora_magnitude_vector["default"].weight.copy_(free.magnitude[k])


def close_gradients(trial: Trial, theirs: nn.Module) -> None:
    free = trial.parametrization
    assert isinstance(free, FreeFactors)
    for k, name in enumerate(trial.attached.layers):
        peer = theirs.get_submodule(f"base_model.model.{name}")
        found = [free.A[k].grad, free.B[k].grad]
        expected = [peer.lora_A["default"].weight.grad, peer.lora_B["default"].weight.grad]
        if magnitudes := getattr(free, "magnitude", None):
            found.append(magnitudes[k].grad)
            expected.append(peer.lora_magnitude_vector["default"].weight.grad)
        for ours, other in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, other.view_as(ours), atol=1e-5, rtol=1e-4)


@pytest.mark.by_turns
@pytest.mark.parametrize(("variant", "start"), pairs())
def test_accumulated_batches_give_the_sum_of_their_gradients(bases, variant: str, start: str) -> None:
    once, twice = (Trial(load(bases, "bert"), "auto", variant=variant, start=start) for _ in range(2))
    once.backward()
    for rows in (IDS[:2], IDS[2:]):
        (loss(twice.model, rows) * len(rows) / len(IDS)).backward()
    twice.live.pull()
    for (name, ours), (_, other) in zip(once.trained(), twice.trained(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, atol=1e-6, rtol=1e-4, msg=name)
    for layer in twice.attached.layers.values():
        assert all(not twice.live.derives(leaf) or leaf.grad is None for leaf in layer.leaves())


def test_starts_are_drawn_from_the_untouched_weight(bases, make_adapter) -> None:
    """With a past in the model, A and B of PiSSA are those without it."""
    shapes = {site.name: tuple(site.weight().shape) for site in find_targets(load(bases, "bert"), "auto", ()).sites}
    bare, beside = (
        Trial(load(bases, "bert"), "auto", past, start="pissa")
        for past in (None, make_adapter(shapes, 2, 1.0, seed=1))
    )
    for name, factors in bare.parametrization.factors().A.items():
        assert torch.equal(factors, beside.parametrization.factors().A[name])


def test_the_next_components_are_those_behind_the_ones_that_are_taken(bases) -> None:
    model = load(bases, "bert")
    site = find_targets(model, "auto", ()).sites[0]
    methods = chosen_methods(TrainConfig(start="pissa", r=R, set=("pissa.components=next",)))
    context: Any = SimpleNamespace(config=SimpleNamespace(r=R), number=2, scaling=2.0)
    A, B = methods.start.factors(site, context)
    U, S, V = torch.linalg.svd(site.weight().double())
    taken = slice(2 * R, 3 * R)
    torch.testing.assert_close(2.0 * B @ A, ((U[:, taken] * S[taken]) @ V[taken]).float(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"32 singular values, .* from 31 to 33"):
        methods.start.factors(site, SimpleNamespace(config=SimpleNamespace(r=R), number=10, scaling=2.0))


def test_dora_refuses_a_weight_with_a_row_of_zeros(bases) -> None:
    """PEFT divides by zero there: the first loss would not be finite, which no learning rate mends."""
    model = load(bases, "bert")
    model.bert.encoder.layer[1].attention.self.value.weight[5] = 0
    with pytest.raises(ConfigError, match=r"row of the weight of bert.encoder.layer.1.attention.self.value is zero"):
        Trial(model, "auto", variant="dora")
    Trial(model, "auto", variant="lora")


@pytest.mark.by_turns
@pytest.mark.parametrize("targets", ["c_attn.q", "c_attn", "all-linear"])
@pytest.mark.parametrize(("variant", "start"), pairs())
def test_a_past_with_a_gain_alone_in_a_block_counts(
    bases, make_adapter, variant: str, start: str, targets: str
) -> None:
    """As of an imported DoRA adapter whose B is zero in the rows of q: its magnitudes still change them."""
    if (targets, variant) == ("c_attn.q", "bitfit"):
        pytest.skip("a block has no bias of its own")
    plain, model = load(bases, "gpt2"), load(bases, "gpt2")
    modules = {site.module_name: (*site.weight().shape,) for site in find_targets(plain, "all-linear", ()).sites}
    low = make_adapter(modules, 2, 1.0, seed=1)
    kept = {name: b * (torch.arange(len(b)) >= len(b) // 3)[:, None] for name, b in low.B.items()}
    gain = {name: torch.linspace(0.5, 1.5, len(b)) for name, b in low.B.items()}
    past = LoraFactors(low.A, kept, low.scaling, gain)
    Trial(model, targets, past, variant=variant, start=start)
    close_layers(model, plain, past)


@pytest.mark.by_turns
@pytest.mark.parametrize(("variant", "start"), pairs())
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_variant_counts_what_it_trains(bases, kind: str, variant: str, start: str) -> None:
    trial = Trial(load(bases, kind), "auto", variant=variant, start=start)
    trained = sum(parameter.numel() for _, parameter in trial.trained())
    assert trained == chosen_methods(trial.config).variant.trained(trial.sites, R)
