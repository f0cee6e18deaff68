"""Every start against its paper's equation in float64, and against PEFT where it has the start."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from lorabank.algebra.stack import AdapterStack
from lorabank.algebra.subspaces import row_space
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.models.bases.sites import site_of
from lorabank.models.facts.inputs import InputCovariance
from lorabank.training.context import TrainContext
from lorabank.training.methods import chosen_methods
from lorabank.training.starts.eva import distributed
from lorabank.training.starts.measured import sampled

R, ALPHA = 3, 6.0
S = ALPHA / R
IDS = torch.arange(4, 100).view(8, 12) * 7 % 26 + 4
MASK = (torch.arange(12) < torch.tensor([12, 5, 7, 12, 3, 9, 12, 4])[:, None]).long()
LABELS = torch.arange(8) % 2
NAMES = [f"bert.encoder.layer.{i}.{part}" for i in (0, 1) for part in ("attention.self.query", "intermediate.dense")]


def inputs(rows: Any, head: int | None = None) -> dict[str, Tensor]:
    numbers = list(rows)
    return {"input_ids": IDS[numbers], "attention_mask": MASK[numbers], "labels": LABELS[numbers]}


def context_of(model: Any, names: Any = NAMES, **given: Any) -> TrainContext:
    config = {key: given.pop(key) for key in list(given) if key in TrainConfig.__dataclass_fields__}
    settings = TrainConfig(**({"r": R, "lora_alpha": ALPHA, "batch_size": 3} | config))
    rest: Any = dict(number=0, earlier=None, initial=None, objects={}, batches=lambda: (), mean=None, rows=len(IDS))
    rest |= dict(inputs=inputs, loss=lambda model, batch: model(**batch).loss)
    return TrainContext(model, [site_of(model, name) for name in names], settings, **(rest | given))


def begun(context: TrainContext) -> Any:
    """Site to A, B and s in float64."""
    factors = chosen_methods(context.config).start.begin(context)
    return {name: (A.double(), factors.B[name].double(), factors.scaling[name]) for name, A in factors.A.items()}


def inputs_of(model: nn.Module, names: Any = NAMES, rows: int = len(IDS)) -> dict[str, Tensor]:
    """What the real tokens feed into the modules, ``[tokens, d_in]`` float64, one text at a time."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, n=name: seen[n].append(args[0][0].double())
        )
        for name in names
    ]
    with torch.no_grad():
        for ids, mask in zip(IDS[:rows], MASK[:rows], strict=True):
            model(input_ids=ids[None, : int(mask.sum())])
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def same_rows(found: Tensor, expected: Tensor, to: float = 1e-4) -> None:
    """Equal up to the sign of each row."""
    signs = (found * expected).sum(1, keepdim=True).sign()
    torch.testing.assert_close(found * signs, expected, atol=to, rtol=to)


# ------------------------------------------------------------------------------------------------------- drawn


def test_gaussian_draws_as_peft_does(model) -> None:
    context = context_of(model, start="gaussian")
    torch.manual_seed(1)
    found = begun(context)
    torch.manual_seed(1)
    for name, (A, B, _) in found.items():
        expected = nn.init.normal_(torch.empty(R, site_of(model, name).d_in), std=1 / R)
        assert torch.equal(A, expected.double())
        assert not B.any()
    wide = begun(context_of(model, start="gaussian", set=("std=5",)))
    assert float(wide[NAMES[0]][0].std()) == pytest.approx(5, rel=0.3)


def test_orthogonal_rows_are_orthonormal_and_uniform(model) -> None:
    context = context_of(model, start="orthogonal")
    torch.manual_seed(1)
    draws = [begun(context)[NAMES[0]] for _ in range(300)]
    for A, B, _ in draws[:5]:
        torch.testing.assert_close(A @ A.mT, torch.eye(R, dtype=A.dtype), atol=1e-6, rtol=0)
        assert not B.any()
    mean = torch.stack([A for A, _, _ in draws]).mean(0)  # of uniform directions it is 0, to 1 / sqrt(300 * 32)
    assert float(mean.abs().max()) < 5 / (300 * 32) ** 0.5
    with pytest.raises(ConfigError, match="32 inputs, among which 33 rows cannot be orthonormal"):
        _refuse(model, start="orthogonal", r=33)


def _refuse(model: nn.Module, **config: Any) -> None:
    context = context_of(model, **config)
    refusal = chosen_methods(context.config).start.refusal(context.sites[0], context.config.r, context.number)
    if refusal:
        raise refusal


# -------------------------------------------------------------------------------------- components of the weight


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("start", ["pissa", "milora", "olora"])
def test_components_are_those_of_the_weight(model, start: str, number: int) -> None:
    """The leading or trailing r, and those of the third task behind the ones of two others."""
    found = begun(context_of(model, start=start, number=number, set=("components=next",)))
    own = begun(context_of(model, start=start, number=number))
    for name, (A, B, s) in found.items():
        W = site_of(model, name).weight().detach().double()
        U, values, V = torch.linalg.svd(W, full_matrices=False)
        Q, upper = torch.linalg.qr(W)
        taken = slice(number * R, number * R + R)
        if start == "milora":
            taken = slice(len(values) - taken.stop, len(values) - taken.start)
        part = S * Q[:, taken] @ upper[taken] if start == "olora" else (U[:, taken] * values[taken]) @ V[taken]
        torch.testing.assert_close(s * B @ A, part, atol=1e-5, rtol=1e-4)
        if start == "olora":
            torch.testing.assert_close(B.mT @ B, torch.eye(R, dtype=B.dtype), atol=1e-5, rtol=0)
        else:  # the singular values are halved between both
            torch.testing.assert_close(A.norm(dim=1), B.norm(dim=0), atol=1e-5, rtol=1e-4)
        assert torch.equal(own[name][0], A) == (number == 0)


def test_next_components_of_two_tasks_share_no_direction(model) -> None:
    for start in ("pissa", "milora"):
        one, two = (
            begun(context_of(model, start=start, number=number, set=("components=next",))) for number in (0, 1)
        )
        for name in NAMES:
            assert float((row_space(one[name][0]) @ row_space(two[name][0]).mT).abs().max()) < 1e-5


@pytest.mark.parametrize("start", ["pissa", "milora", "olora", "corda", "lora-ga", "eva"])
def test_a_rank_that_the_weight_has_not_is_refused(model, start: str) -> None:
    with pytest.raises(ConfigError, match=r"has 32|of them") as caught:
        _refuse(model, start=start, r=33)
    assert "lower --r" in caught.value.hint


# ------------------------------------------------------------------------------------------------- measured


def test_a_sample_is_bounded_seeded_and_of_the_tasks_own_rows(model) -> None:
    def drawn(most: int, **given: Any) -> list[int]:
        asked: list[int] = []
        context = context_of(model, inputs=lambda numbers, head=None: asked.extend(numbers) or {}, **given)
        assert all(not batch for batch in sampled(context, most))
        return asked

    assert drawn(100) == list(range(8))
    assert drawn(3) == drawn(3)
    assert len(set(drawn(3))) == 3
    assert len({tuple(drawn(3, seed=seed)) for seed in range(6)}) > 1
    assert len({tuple(drawn(3, number=number)) for number in range(6)}) > 1
    with pytest.raises(ConfigError, match="of a stream there are none"):
        drawn(3, rows=0)


def test_measuring_changes_nothing_of_the_model(model) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for start in ("eva", "corda", "lora-ga"):
        state = torch.random.get_rng_state()
        begun(context_of(model.train(), start=start))
        assert model.training
        assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_eva_begins_at_the_singular_vectors_of_the_inputs(model) -> None:
    """Of the real tokens alone, of which each text has another number; ranks as a brute force distributes them."""
    found, seen = begun(context_of(model, start="eva")), inputs_of(model)
    decomposed = {name: torch.linalg.svd(X, full_matrices=False)[1:] for name, X in seen.items()}
    shares = {name: values.square() / values.square().sum() for name, (values, _) in decomposed.items()}
    best = sorted(
        ((float(shares[name][i]), name) for name in NAMES for i in range(1, 2 * R)), key=lambda one: -one[0]
    )[: len(NAMES) * (R - 1)]
    for name, (A, B, s) in found.items():
        rank = 1 + sum(one == name for _, one in best)
        assert (A.shape, B.shape, s) == ((rank, 32), (site_of(model, name).d_out, rank), S)
        same_rows(A, decomposed[name][1][:rank], 1e-3)
        assert not B.any()
    assert len({len(A) for A, _, _ in found.values()}) > 1
    assert sum(len(A) for A, _, _ in found.values()) == R * len(NAMES)


def test_eva_with_fewer_rows_and_without_redistribution(model) -> None:
    found = begun(context_of(model, start="eva", rows=2, set=("rho=1",)))
    for name, X in inputs_of(model, rows=2).items():
        assert found[name][0].shape == (R, 32)
        same_rows(found[name][0], torch.linalg.svd(X, full_matrices=False)[2][:R], 1e-3)


def test_ranks_are_bounded_and_never_none() -> None:
    shares = {"a": torch.tensor([0.9, 0.08, 0.02, 0.0]), "b": torch.tensor([0.3, 0.3, 0.2, 0.2])}
    assert distributed(shares, 2, 1.0) == {"a": 2, "b": 2}
    assert distributed(shares, 2, 1.5) == {"a": 1, "b": 3}
    assert distributed(shares, 2, 9.0) == {"a": 1, "b": 3}
    assert distributed(shares, 3, 2.0) == {"a": 2, "b": 4}


@pytest.mark.parametrize("given", [{"strategy": "olora-projected"}, {"set": ("components=next", "rho=1")}])
def test_eva_finds_what_is_strongest_of_what_earlier_adapters_left(model, make_adapter, given: Any) -> None:
    past = make_adapter({name: (site_of(model, name).d_out, 32) for name in NAMES[:3]}, 4, 1.0, seed=1)
    found = begun(context_of(model, start="eva", earlier=AdapterStack.build({"past": past}), **given))
    for name, X in inputs_of(model).items():
        if name in past.A:
            Q = torch.linalg.qr(past.A[name].double().mT)[0]
            assert float((found[name][0] @ Q).abs().max()) < 1e-5
            X = X - (X @ Q) @ Q.mT
        same_rows(found[name][0], torch.linalg.svd(X, full_matrices=False)[2][:R], 1e-3)


def test_eva_says_when_earlier_adapters_left_nothing(model, make_adapter) -> None:
    past = make_adapter({NAMES[0]: (32, 32)}, 30, 1.0, seed=1)
    context = context_of(model, start="eva", earlier=AdapterStack.build({"past": past}), set=("components=next",))
    with pytest.raises(ConfigError, match=r"1 earlier adapters leave 2 directions of .*, and the start needs 3"):
        begun(context)


def test_eva_is_that_of_peft_where_the_inputs_have_no_mean(model) -> None:
    """PEFT centres what it decomposes: every token beside its negative has the mean 0."""
    context = context_of(model, start="eva", set=("rho=1",))
    config = peft.LoraConfig(
        r=R, lora_alpha=ALPHA, target_modules=NAMES, init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0)
    )
    found = begun(context)
    theirs = peft.get_peft_model(model, config)
    real = MASK.bool()
    peft.initialize_lora_eva_weights(
        theirs,
        dataloader=[{"input_ids": IDS, "attention_mask": MASK}],
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=lambda x, _, name: (
            torch.cat([x[0][real], -x[0][real]]) if isinstance(x, tuple) else torch.cat([x[real], -x[real]])
        ),
        show_progress_bar=False,
    )
    for name in NAMES:
        A = theirs.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.detach().double()
        torch.testing.assert_close(A @ A.mT, torch.eye(R, dtype=A.dtype), atol=1e-4, rtol=0)
        cosines = torch.linalg.svdvals(A @ found[name][0].mT)
        assert float(cosines.min()) > 0.99  # theirs is approximate


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_takes_out_what_the_inputs_use_most_or_least(model, tmp_path: Path, mode: str) -> None:
    """What is left of ``W C'`` has all other singular values; C' by hand, of the task's rows or of the text's."""
    given: dict[str, Any] = {"set": ("mode=ipm",)}
    if mode == "kpm":
        (tmp_path / "text").write_text("one\n\n two \n", encoding="utf-8")
        asked: list[str] = []

        def texts(lines: Any) -> Any:
            asked.extend(lines)
            yield inputs(range(4, 8))

        given = {"set": ("mode=kpm", f"text={tmp_path / 'text'}"), "texts": texts}
    found, seen = begun(context_of(model, start="corda", **given)), inputs_of(model)
    if mode == "kpm":
        assert asked == ["one", "two"]
        tokens = MASK.sum(1).tolist()
        seen = {name: X[sum(tokens[:4]) :] for name, X in seen.items()}
    for name, (A, B, s) in found.items():
        W, C = site_of(model, name).weight().detach().double(), seen[name].mT @ seen[name]
        C = C / C.diagonal().mean() + 0.01 * torch.eye(32, dtype=C.dtype)
        whole, left = torch.linalg.svdvals(W @ C), torch.linalg.svdvals((W - s * B @ A) @ C)
        expected = whole[R:] if mode == "ipm" else whole[:-R]
        torch.testing.assert_close(left[: len(expected)], expected, atol=1e-4, rtol=1e-4)
        assert float(left[len(expected) :].max()) < 1e-4
        assert int(torch.linalg.matrix_rank(B @ A, rtol=1e-4)) == R


def test_corda_of_white_inputs_is_pissa(model, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorabank.training.starts import corda

    white = InputCovariance({"x": torch.eye(32)}, {"x": 1}, dict.fromkeys(NAMES, "x"))
    monkeypatch.setattr(corda, "covariance_of", lambda *_: white)
    found, pissa = begun(context_of(model, start="corda")), begun(context_of(model, start="pissa"))
    for name in NAMES:
        torch.testing.assert_close(found[name][1] @ found[name][0], pissa[name][1] @ pissa[name][0], atol=1e-5, rtol=0)
        ratio = found[name][0].norm(dim=1) / pissa[name][0].norm(dim=1)
        torch.testing.assert_close(ratio, torch.full_like(ratio, 1.01**-0.5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_takes_out_what_peft_does(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Of one text: PEFT divides each by its largest entry, and takes one without padding at a time."""
    monkeypatch.setitem(sys.modules, "attr", dataclasses)  # PEFT wants a package that it does not depend on
    from peft.tuners.lora.corda import preprocess_corda

    (tmp_path / "text").write_text("it", encoding="utf-8")
    chosen = ("mode=kpm", f"text={tmp_path / 'text'}") if mode == "kpm" else ("mode=ipm",)
    context = context_of(
        model, start="corda", set=chosen, rows=1, texts=lambda lines: [inputs([0])], inputs=lambda *_: inputs([0])
    )
    found = begun(context)
    config = peft.LoraConfig(
        r=R,
        lora_alpha=ALPHA,
        target_modules=NAMES,
        init_lora_weights="corda",
        corda_config=peft.tuners.lora.config.CordaConfig(corda_method=mode),
    )
    weights = {name: site_of(model, name).weight().detach().clone() for name in NAMES}
    preprocess_corda(model, config, run_model=lambda: model(input_ids=IDS[:1]))
    theirs = peft.get_peft_model(model, config)
    for name in NAMES:
        peer = theirs.get_submodule(f"base_model.model.{name}")
        taken = (weights[name] - peer.get_base_layer().weight.detach()).double()
        A, B, s = found[name]
        torch.testing.assert_close(s * B @ A, taken, atol=1e-3 * float(taken.abs().max()), rtol=1e-2)


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        (("mode=kpm",), "keeps the knowledge of a text, and none is given"),
        (("text=x",), "reads the task's own rows, and no text"),
        (("mode=kpm", "text=nowhere.txt"), "there is no file nowhere.txt"),
    ],
)
def test_corda_wants_a_text_to_keep_its_knowledge(model, chosen: tuple[str, ...], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        _refuse(model, start="corda", set=chosen)


@pytest.mark.parametrize(("content", "why"), [(b"\n \n", "holds no text"), (b"\xff\xfe", "cannot be read as UTF-8")])
def test_corda_says_what_is_wrong_with_a_text(model, tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "text").write_bytes(content)
    chosen = ("mode=kpm", f"text={tmp_path / 'text'}")
    with pytest.raises(ConfigError, match=why):
        begun(context_of(model, start="corda", set=chosen, texts=lambda lines: []))


def test_a_site_that_no_text_reaches_is_named(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model.bert.encoder.layer[1]), "forward", lambda self, x, *_, **__: x)
    for start in ("eva", "corda", "lora-ga"):
        with pytest.raises(ConfigError, match=r"no text of the sample passes through bert.encoder.layer.\d"):
            begun(context_of(model, start=start))
