"""Exported folders of language models: plain PEFT gives lorabank's logits with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import ConfigError
from tests.unit.workflows.language_models import (
    CLOSE,
    KINDS,
    TASK_TYPES,
    add,
    bank_logits,
    fill_language_bank,
    own_state,
    peft_logits,
)

pytestmark = pytest.mark.filterwarnings("error:Found missing adapter keys")


@pytest.fixture(scope="session", params=KINDS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, save_language_model: Callable[..., Path]
) -> tuple[str, Path, Path]:
    """A kind, its base and a bank with two tasks and a manual composition of them."""
    folder = tmp_path_factory.mktemp(request.param)
    # Weights of the usual size: wide ones would blow up the rounding of W x + B A x against (W + B A) x.
    base = save_language_model(folder / "base", request.param, initializer_range=0.1)
    bank = fill_language_bank(folder / "bank", base)
    api.compose(bank, ComposeConfig(mode="manual", name="both", set=("weights=first=0.7,second=-1.5",), device="cpu"))
    api.compose(bank, ComposeConfig(mode="manual", name="small", set=("max_rank=1",), device="cpu"))
    return request.param, base, bank


def close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def config_of(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")))


def test_a_joined_context_answers_as_the_bank_does(made, tmp_path) -> None:
    kind, base, bank = made
    assert len(own_state(bank, "second")) == 2
    result = api.export(bank, "second", tmp_path / "out")
    expected = bank_logits(bank, own_state(bank, "second"))
    close(peft_logits(base, tmp_path / "out"), expected)
    bare = peft_logits(base, None)
    assert all((one - other).abs().max() > 1e-2 for one, other in zip(bare, expected, strict=True))
    config = config_of(tmp_path / "out")
    assert (config["task_type"], config["modules_to_save"]) == (TASK_TYPES[kind], None)
    assert result.kind == "joined"
    assert 'prompt "{text} is one, three, two:"; answers one, three, two' in result.note
    assert "head" not in result.note


@pytest.mark.parametrize("task", ["first", "second"])
def test_a_stored_adapter_answers_alone(made, tmp_path, task) -> None:
    _, base, bank = made
    result = api.export(bank, task, tmp_path / "out", own=True)
    digest = Bank.open(bank).snapshot().adapter_of(task).digest
    close(peft_logits(base, tmp_path / "out"), bank_logits(bank, {digest: 1.0}))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert name in result.files
        assert (tmp_path / "out" / name).read_bytes() == (bank / "adapters" / digest / name).read_bytes()


def test_every_linear_module_but_the_last_is_in_it(made, tmp_path) -> None:
    kind, _, bank = made
    api.export(bank, "first", tmp_path / "out")
    modules = config_of(tmp_path / "out")["target_modules"]
    assert isinstance(modules, list)
    # two layers; T5's decoder layers hold two attentions
    assert len(modules) == {"llama": 2 * 7, "t5": 2 * (4 + 2) + 2 * (4 + 4 + 2)}[kind]
    assert "lm_head" not in modules


def test_a_manual_composition_is_the_weighted_sum(made, tmp_path) -> None:
    kind, base, bank = made
    result = api.export(bank, "both", tmp_path / "out")
    snapshot = Bank.open(bank).snapshot()
    weights = {snapshot.adapter_of("first").digest: 0.7, snapshot.adapter_of("second").digest: -1.5}
    close(peft_logits(base, tmp_path / "out"), bank_logits(bank, weights))
    assert config_of(tmp_path / "out")["task_type"] == TASK_TYPES[kind]
    assert "first=0.7, second=-1.5 in one adapter by weighted, r " in result.note
    assert not any(word in result.note for word in ("head", "classifier"))


def test_a_compressed_composition_has_its_rank(made, tmp_path) -> None:
    _, base, bank = made
    api.export(bank, "small", tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert (config["r"], config["rank_pattern"]) == (1, {})
    whole = bank_logits(bank, dict.fromkeys(own_state(bank, "second"), 1.0))
    found = peft_logits(base, tmp_path / "out")
    assert all(torch.isfinite(logits).all() for logits in found)
    assert any((one - other).abs().max() > 1e-4 for one, other in zip(found, whole, strict=True))


@pytest.mark.parametrize(
    ("chat", "asked"),
    [("none", "the text is the prompt"), ("auto", "the text is a user's turn in the base's chat template")],
)
def test_a_task_without_a_template_says_what_the_text_is(tmp_path, make_language_model, chat, asked) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"say {c}", "completion": c * 2}) + "\n" for c in "abcdefgh"))
    given = {"data": str(data), "set": (f"chat_template={chat}",)}
    add(tmp_path / "bank", make_language_model(), "free", ("a", "b"), 0, **given)
    note = api.export(tmp_path / "bank", "free", tmp_path / "out").note
    assert note.endswith(f"; {asked}")


def test_what_attention_answers_is_no_single_adapter(tmp_path, make_language_model) -> None:
    bank, base = tmp_path / "bank", make_language_model(initializer_range=0.1)
    for seed, name in enumerate(("one", "two")):
        add(bank, base, name, ("no", "yes"), seed, strategy="amlora", r=2)
    with pytest.raises(ConfigError, match="attention over several adapters") as refused:
        api.export(bank, "two", tmp_path / "out")
    assert refused.value.commands == (("export", "two", "FOLDER", "--own"),)
    assert not (tmp_path / "out").exists()
    api.export(bank, "two", tmp_path / "out", own=True)
    digest = Bank.open(bank).snapshot().adapter_of("two").digest
    close(peft_logits(base, tmp_path / "out"), bank_logits(bank, {digest: 1.0}))
