"""A base with an adapter merged into it, as the code of its card loads it: beside sums of dense matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import IncompatibleError
from lorabank.core.records import BaseModelRecord
from lorabank.exchange.peft_folder import adapter_files
from lorabank.models.bases.kinds.attention import Attention
from lorabank.models.bases.loading import describe_base, load_base
from lorabank.models.bases.quantised.linear import QuantisedLinear
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.bases.sites import set_matrix, site_of
from lorabank.workflows.carrying.merged import merged_card, merged_files
from tests.unit.models import torch_encoder

IDS = torch.tensor([[4, 9, 6, 2, 11], [8, 12, 5, 4, 6]])
GROUP, R = 32, 2


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def described(folder: Path, task_type: str) -> BaseModelRecord:
    return describe_base(resolve_base(str(folder)), task_type, f"hqq:group_size={GROUP}")


def adapter(base: BaseModelRecord, names: tuple[str, ...], head: Mapping[str, Tensor]) -> tuple[LoraFactors, Any]:
    """Random factors, A constant within groups, and PEFT's files of them."""
    model = load_base(base).model
    sites = {name: site_of(model, name) for name in names}
    A = {name: random(R, site.d_in // GROUP, seed=1).repeat_interleave(GROUP, 1) / 4 for name, site in sites.items()}
    B = {name: random(site.d_out, R, seed=2) / 4 for name, site in sites.items()}
    files = adapter_files(
        LoraFactors(A, B, dict.fromkeys(names, 1.0)), head, base_model="base", task_type=base.task_type, r=R,
        lora_alpha=R, use_rslora=False, head_modules=sorted({name.rpartition(".")[0] for name in head}),
    )  # fmt: skip
    return LoraFactors(A, B, dict.fromkeys(names, 1.0)), files


def write(folder: Path, base: BaseModelRecord, files: Mapping[str, bytes], labels: tuple[str, ...]) -> None:
    folder.mkdir()
    for name, data in merged_files(files, base, labels).items():
        (folder / name).write_bytes(data)
    (folder / "README.md").write_bytes(merged_card("one", "a note", base, folder.name))


def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model that the card's code makes."""
    code = (folder / "README.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(folder.parent)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names["model"]


def expected(base: BaseModelRecord, factors: LoraFactors, head: Mapping[str, Tensor]) -> Any:
    """The bank's own base with dense matrices in the place of those that the adapter changes, and the head."""
    loaded = load_base(base)
    for name in factors.A:
        layer = loaded.model.get_submodule(name)
        total = site_of(loaded.model, name).weight().double() + factors.delta(name).double()
        if isinstance(layer, QuantisedLinear):
            dense = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            if layer.bias is not None:
                dense.bias = layer.bias
            loaded.model.set_submodule(name, dense)
            layer = dense
        set_matrix(layer, total.float())
    for name, tensor in head.items():
        module, _, own = name.rpartition(".")
        setattr(loaded.model.get_submodule(module), own, torch.nn.Parameter(tensor))
    return loaded.model


@pytest.fixture
def torch_base(make_base: Callable[..., Path], tmp_path: Path) -> Path:
    return torch_encoder.save(tmp_path / "torch", AutoTokenizer.from_pretrained(make_base("bert", name="letters")))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["distilbert", "torch"])
def test_a_classifier_comes_with_its_head(
    kind: str, make_base: Callable[..., Path], torch_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's attention among them: in the folder its matrices have torch's names."""
    base = described(torch_base if kind == "torch" else make_base(kind, initializer_range=0.3), "SEQ_CLS")
    stem = "body.encoder.layers.0.self_attn" if kind == "torch" else "distilbert.transformer.layer.0.attention"
    parts = ("q_proj", "v_proj", "out_proj") if kind == "torch" else ("q_lin", "out_lin")
    head = {"classifier.weight": random(3, 32, seed=3), "classifier.bias": random(3, seed=4)}
    if kind == "distilbert":
        head |= {"pre_classifier.weight": random(32, 32, seed=5) / 4, "pre_classifier.bias": random(32, seed=6)}
    factors, files = adapter(base, tuple(f"{stem}.{part}" for part in parts), head)
    write(tmp_path / "out", base, files, ("one", "two", "three"))
    model = loaded(tmp_path / "out", monkeypatch)
    assert model.config.id2label == {0: "one", 1: "two", 2: "three"}
    logits = expected(base, factors, head)(input_ids=IDS).logits
    assert logits.shape == (2, 3)
    torch.testing.assert_close(model(input_ids=IDS).logits, logits, rtol=1e-4, atol=1e-4)
    if kind == "torch":
        assert f"{stem}.in_proj_weight" in load_file(tmp_path / "out/model.safetensors")


@torch.no_grad()
def test_a_table_of_embeddings_is_merged_only_where_nothing_shares_it(
    make_language_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter changes what tokens are read as, and not the logits' matrix."""
    name = "model.embed_tokens"
    apart, tied = (
        described(make_language_model(name=str(tie), tie_word_embeddings=tie, vocab_size=288), "CAUSAL_LM")
        for tie in (False, True)
    )
    factors, files = adapter(apart, (name,), {})
    write(tmp_path / "out", apart, files, ())
    logits = expected(apart, factors, {})(input_ids=IDS).logits
    model = loaded(tmp_path / "out", monkeypatch)
    torch.testing.assert_close(model(input_ids=IDS).logits, logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(IncompatibleError, match=r"'lm_head' shares the weight of 'model\.embed_tokens'") as caught:
        merged_files(files, tied, ())
    assert caught.value.hint == "export without --merged"


def test_the_card_finds_a_tensor_that_is_not_there(
    make_language_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tied matrix one name is enough; whatever else is missing would stay random."""
    base = described(make_language_model(tie_word_embeddings=True), "CAUSAL_LM")
    _, files = adapter(base, ("model.layers.0.self_attn.q_proj",), {})
    write(tmp_path / "out", base, files, ())
    file = tmp_path / "out/model.safetensors"
    tensors = load_file(file)
    assert {"lm_head.weight", "model.embed_tokens.weight"} - set(tensors)
    loaded(tmp_path / "out", monkeypatch)
    del tensors["model.norm.weight"]
    save_file(tensors, file)
    with pytest.raises(AssertionError, match=r"model\.norm\.weight"):
        loaded(tmp_path / "out", monkeypatch)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"kdim": 7, "vdim": 5}], ids=str)
def test_attention_has_torchs_parameters(settings: dict[str, Any]) -> None:
    theirs = torch.nn.MultiheadAttention(12, 3, **settings)
    found = Attention(theirs).as_torch()
    plain = {name: one for name, one in theirs.state_dict().items() if not name.startswith("out_proj")}
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], one) for name, one in plain.items())
