"""Each saving against plain torch: what is computed, what is kept, and what a step gives."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError, IncompatibleError
from lorabank.core.shelves import SAVINGS
from lorabank.models.bases.targets import find_targets
from lorabank.training.context import TrainContext
from lorabank.training.layers.attaching import Attached, attach
from lorabank.training.methods import chosen_methods
from lorabank.training.savings.branches import branches_of
from lorabank.training.savings.dropbp import allotted, completed
from lorabank.training.savings.s2_attention import S2Attention, group_size
from lorabank.training.variants.base import Step

IDS = torch.arange(36).view(3, 12) * 7 % 30
ENDS = {
    "bert": ("bert.encoder.layer.{}.attention.output.dense", "bert.encoder.layer.{}.output.dense"),
    "llama": ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj"),
    "gpt2": ("transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj"),
}


def load(bases: dict[str, str], kind: str) -> Any:
    import transformers

    auto = {"bert": "SequenceClassification", "t5": "Seq2SeqLM"}.get(kind, "CausalLM")
    torch.manual_seed(2)  # of the head
    return getattr(transformers, f"AutoModelFor{auto}").from_pretrained(bases[kind]).eval().requires_grad_(False)


def loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    more = {"decoder_input_ids": inputs["input_ids"]} if model.config.is_encoder_decoder else {}
    scores = (model(**inputs, **more).logits.float() / 10).log_softmax(-1)
    return -scores[..., 1].mean()


def mean(each: Any, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    more = {"decoder_input_ids": inputs["input_ids"]} if model.config.is_encoder_decoder else {}
    logits = (model(**inputs, **more).logits.float() / 10).flatten(0, -2)
    return each(logits, torch.ones(len(logits), dtype=torch.long), torch.zeros(len(logits))).mean()


def attached_to(model: Any, *savings: str, **config: Any) -> Attached:
    settings = TrainConfig(
        r=3, lora_alpha=6.0, lora_dropout=0.0, target_modules="all-linear", savings=savings, **config
    )
    sites = find_targets(model, settings.target_modules, ("classifier",)).sites
    nothing: Any = dict(number=0, earlier=None, initial=None, objects={}, mean=mean, inputs=None)
    batches = lambda: iter([{"input_ids": IDS}])  # noqa: E731
    context = TrainContext(model, sites, settings, batches=batches, loss=loss, **nothing)
    methods = chosen_methods(settings)
    torch.manual_seed(5)
    found = attach(context, methods.variant.parametrize(context, methods.start))
    with torch.no_grad():  # B = 0 would hide what passes through A
        for layer in found.layers.values():
            layer.lora_B.normal_(std=0.1)
    for saving in methods.savings:
        found = saving.attach(context, found)
    return found


def gradients(model: nn.Module, attached: Attached) -> list[Tensor | None]:
    leaves = [leaf for layer in attached.layers.values() for leaf in layer.leaves()]
    value = (attached.loss or loss)(model, {"input_ids": IDS})
    return list(torch.autograd.grad(value, leaves, allow_unused=True))


@contextmanager
def counted() -> Iterator[list[int]]:
    """The numbers that the graph of a forward pass keeps."""
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


# -------------------------------------------------------------------------------------- gradient checkpointing


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "t5"])
def test_checkpointing_keeps_less_and_gives_the_same_gradients(bases, kind: str, training: bool) -> None:
    plain, model = load(bases, kind), load(bases, kind)
    whole, saved = attached_to(plain), attached_to(model, "gradient-checkpointing")
    sizes, found = [], []
    for one, of in ((plain, whole), (model, saved)):
        one.train(training)
        torch.manual_seed(7)
        with counted() as kept:
            loss(one, {"input_ids": IDS})
        sizes.append(sum(kept))
        torch.manual_seed(7)
        found.append(gradients(one, of))
    assert sizes[1] < sizes[0] / 2
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    for end in saved.ends:
        end()
    with counted() as kept:
        loss(model, {"input_ids": IDS})
    assert sum(kept) == sizes[0]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_training_with_checkpointing_gives_the_same_bytes(train, factors_of, dropout: float) -> None:
    settings = {"epochs": 1, "lora_dropout": dropout, "target_modules": "all-linear"}
    plain = factors_of(train(work="plain", **settings))
    saved = factors_of(train(work="saved", savings=("gradient-checkpointing",), **settings))
    assert all(torch.equal(plain[name], saved[name]) for name in plain)


# ------------------------------------------------------------------------------------------------------- dropbp


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_the_branches_are_an_attention_and_a_network_per_layer(bases, kind: str) -> None:
    model = load(bases, kind)
    attached_to(model)
    found = branches_of(model)
    assert [one.name for one in found] == [end.format(layer) for layer in (0, 1) for end in ENDS[kind]]
    assert all(one.adapted for one in found)
    for layer in (0, 1):  # the weights of a layer's linear maps are all in its branches
        prefix = ENDS[kind][0].partition("{}")[0] + f"{layer}."
        plain = load(bases, kind)
        whole = sum(p.numel() for name, p in plain.named_parameters() if name.startswith(prefix) and p.ndim == 2)
        assert sum(one.weights for one in found if one.name.startswith(prefix)) == whole


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_a_branch_that_is_left_out_is_a_constant_of_the_graph(bases, kind: str, number: int) -> None:
    """The forward pass is the same, and gradients are those of a model whose branch is a constant there."""
    model, plain = load(bases, kind), load(bases, kind)
    saved, whole = attached_to(model, "dropbp"), attached_to(plain)
    saved.parametrization._fixed = [number == one for one in range(4)]
    name = [end.format(layer) for layer in (0, 1) for end in ENDS[kind]][number]
    constant: list[Tensor] = []
    end = plain.get_submodule(name)
    keep = end.register_forward_hook(lambda _, args, out: constant.append(out.detach()))
    logits = plain(input_ids=IDS).logits
    keep.remove()
    torch.testing.assert_close(model(input_ids=IDS).logits, logits, atol=0, rtol=0)
    end.register_forward_hook(lambda _, args, out: constant[0])
    expected, found = gradients(plain, whole), gradients(model, saved)
    assert [one is None for one in found] == [one is None for one in expected]
    for ours, other in zip(found, expected, strict=True):
        if ours is not None:
            torch.testing.assert_close(ours, other, atol=1e-7, rtol=1e-5)


def test_sensitivities_are_changes_of_the_gradients_norms(bases) -> None:
    model, plain = load(bases, "llama"), load(bases, "llama")
    saved, whole = attached_to(model, "dropbp"), attached_to(plain)
    names = [end.format(layer) for layer in (0, 1) for end in ENDS["llama"]]

    def norms() -> Tensor:
        found = gradients(plain, whole)
        return torch.tensor([0.0 if one is None else float(one.double().norm()) for one in found])

    usual, expected = norms(), []
    for name in names:
        hook = plain.get_submodule(name).register_forward_hook(lambda _, args, out: out.detach())
        expected.append(float((usual - norms()).square().sum()))
        hook.remove()
    found = saved.parametrization._sensitivities()
    assert found == pytest.approx(expected, rel=1e-4)
    assert min(found) > 0
    saved.parametrization.before_step(Step(1, 10))
    rates = saved.parametrization.rates
    flops = torch.tensor([one.weights for one in branches_of(model)], dtype=torch.float64)
    assert float(((1 - rates) * flops).sum()) <= 0.5 * float(flops.sum()) + 1e-6
    assert int(rates.argmin()) == expected.index(max(expected))


def test_rates_cost_the_least() -> None:
    """Of all rates in tenths with as much work left out, for branches of equal work."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        costs = torch.rand(3, generator=generator).tolist()
        found = [round(10 * rate) for rate in allotted(costs, [1.0, 1.0, 1.0], 0.5)]

        def cost(tenths: Any, of: Any = costs) -> float:
            return sum(c * sum(range(1, n + 1)) for c, n in zip(of, tenths, strict=True))

        every = [one for one in itertools.product(range(10), repeat=3) if sum(one) == 15]
        assert sum(found) == 15
        assert cost(found) == pytest.approx(min(map(cost, every)))
    assert allotted([1.0, 1.0], [3.0, 1.0], 0.0) == [0, 0]
    assert allotted([0.0, 1.0], [1.0, 1.0], 0.5) == pytest.approx([0.9, 0.1])


def test_a_step_leaves_out_enough_and_never_all_that_is_trained() -> None:
    rates, all_of = [0.1, 0.9, 0.5, 0.3], [True] * 4
    assert completed([False] * 4, rates, 0.5, all_of) == [False, True, True, False]
    assert completed([True, False, False, False], rates, 0.5, all_of) == [True, True, False, False]
    assert completed([True] * 4, rates, 0.5, all_of) == [False, True, True, True]
    assert completed([True, True, True, False], rates, 0.5, [False, True, True, False]) == [True, True, False, False]


def test_half_of_the_branches_are_left_out_and_others_in_each_step(bases) -> None:
    saved = attached_to(load(bases, "bert"), "dropbp")
    parametrization, seen = saved.parametrization, set()
    for number in range(20):
        dropped = tuple(parametrization.dropped())
        assert tuple(parametrization.dropped()) == dropped  # accumulated batches and layers computed again
        assert 2 <= sum(dropped) < 4
        seen.add(dropped)
        parametrization.after_step(Step(number + 1, 1000))
    assert len(seen) > 3


def test_without_a_rate_nothing_changes_and_with_one_a_task_is_learnt(train, factors_of) -> None:
    settings = {"epochs": 2, "lora_dropout": 0.0, "target_modules": "all-linear", "learning_rate": 1e-2}
    plain = factors_of(train(work="plain", **settings))
    none = factors_of(train(work="none", savings=("dropbp",), set=("rate=0",), **settings))
    assert all(torch.equal(plain[name], none[name]) for name in plain)
    half = train(work="half", savings=("dropbp",), set=("dropbp.rate=0.75",), **settings)
    assert any(not torch.equal(plain[name], tensor) for name, tensor in factors_of(half).items())


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_a_resumed_training_leaves_out_the_same(train, factors_of, recorder, variant: str) -> None:
    """Behind the measurement too: the rates are in the checkpoint."""
    settings = {"epochs": 2, "savings": ("dropbp", "gradient-checkpointing"), "save_steps": 4, "variant": variant}
    whole = factors_of(train(work="whole", **settings))
    with pytest.raises(KeyboardInterrupt):
        train(recorder(stop_after=6), work="cut", **settings)
    resumed = factors_of(train(work="cut", resume=True, **settings))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_model_whose_branches_are_not_known_is_refused(bases, monkeypatch: pytest.MonkeyPatch) -> None:
    for names in ("ATTENTIONS", "NETWORKS"):
        monkeypatch.setattr(f"lorabank.training.savings.branches.{names}", ("nothing",))
    with pytest.raises(IncompatibleError, match=r"lorabank does not know where the layers of .* add to their inputs"):
        attached_to(load(bases, "bert"), "dropbp")


# ------------------------------------------------------------------------------------------------- s2-attention


class Asking(nn.Module):
    """What transformers tells an attention of the layer that asks."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.is_causal, self.num_key_value_groups = True, groups


def tensors(heads: int, of_keys: int, tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(2, h, tokens, 8, generator=generator, dtype=torch.float64) for h in (heads, of_keys, of_keys)]


def dense(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """Attention by its equation, ``seen`` true where a query sees a key; ``[n, tokens, heads, d]``."""
    key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
    logits = (query @ key.mT * query.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    return (logits.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize(("tokens", "ratio"), [(16, 0.25), (18, 0.25), (13, 0.3), (9, 0.5)])
@pytest.mark.parametrize("padded", [False, True])
def test_half_of_the_heads_see_shifted_groups(tokens: int, ratio: float, padded: bool) -> None:
    query, key, value = tensors(4, 2, tokens)
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril().expand(2, 1, tokens, tokens).clone()
    if padded:
        causal[1, :, :, :3] = False
        causal[1, 0, range(3), range(3)] = True
    size = group_size(tokens, ratio)
    assert size % 2 == 0
    assert ratio * tokens <= size < ratio * tokens + 2
    places = torch.arange(tokens)
    groups = [(places - before).div(size, rounding_mode="floor") for before in (0, size // 2)]
    same = torch.stack([groups[head // 2][:, None] == groups[head // 2] for head in range(4)])
    saving = S2Attention(ratio=ratio, shortest=4)
    usual: Any = None
    out, _ = saving._attend(usual, Asking(2), query, key, value, causal if padded else None)
    seen = causal & same
    rows = seen.any(-1)[:, 0]  # a place of padding whose group holds nothing else sees itself, and is never read
    expected = dense(query, key, value, seen)
    torch.testing.assert_close(out[rows], expected[rows], atol=1e-10, rtol=1e-8)


def test_short_texts_and_answers_are_read_whole(bases) -> None:
    model, plain = load(bases, "llama"), load(bases, "llama")
    saved = attached_to(model, "s2-attention", set=("shortest=8",))
    attached_to(plain)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    assert not torch.allclose(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    torch.testing.assert_close(model(input_ids=IDS[:, :8]).logits, plain(input_ids=IDS[:, :8]).logits)
    # what stands in the first half group and the first group is the same with groups
    found, whole = model(input_ids=IDS).logits, plain(input_ids=IDS).logits
    torch.testing.assert_close(found[:, :2], whole[:, :2], atol=1e-5, rtol=1e-5)
    assert saved.ends


# ---------------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("saving", sorted(SAVINGS))
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "t5"])
def test_every_saving_fits_every_kind_and_leaves_the_model_as_it_was(bases, kind: str, saving: str) -> None:
    model, plain = load(bases, kind), load(bases, kind)
    if saving == "s2-attention" and kind != "llama":
        with pytest.raises(IncompatibleError, match="not a causal decoder with rotary positions"):
            attached_to(model, saving)
        return
    saved, whole = attached_to(model, saving), attached_to(plain)
    assert any(one is not None and bool(one.any()) for one in gradients(model, saved))
    for end in saved.ends:
        end()
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())
    assert model.config._attn_implementation == plain.config._attn_implementation
    for ours, other in zip(gradients(model, saved), gradients(plain, whole), strict=True):
        torch.testing.assert_close(ours, other, atol=1e-7, rtol=1e-5)


def test_an_unknown_saving_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"there is no saving 'dropb'. Did you mean 'dropbp'\?"):
        chosen_methods(TrainConfig(savings=("dropb",)))


def test_dropbp_is_refused_in_several_processes(bases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabank.core.machine.distributed.count", lambda: 2)
    with pytest.raises(IncompatibleError, match="2 processes exchange all of them"):
        attached_to(load(bases, "bert"), "dropbp")
