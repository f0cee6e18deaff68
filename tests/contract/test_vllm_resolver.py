"""vLLM's plug-in: what a stand-in of ``vllm.lora.resolver`` gets of a bank is what plain PEFT answers alike."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lorabank.bank.bank import Bank
from lorabank.serving.backends import plugin, resolver
from tests.contract.test_text_to_text import Place, encoded, plainly_generated

ROOT = Path(__file__).parents[2]


class LoRARequest:
    """vLLM's, which refuses numbers below 1 and empty paths."""

    def __init__(self, lora_name: str, lora_int_id: int, lora_path: str = "") -> None:
        assert lora_int_id > 0
        assert lora_path
        self.lora_name, self.lora_int_id, self.lora_path = lora_name, lora_int_id, lora_path


class LoRAResolver(ABC):
    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None: ...


class Registry:
    def __init__(self) -> None:
        self.resolvers: dict[str, LoRAResolver] = {}

    def register_resolver(self, resolver_name: str, resolver: LoRAResolver) -> None:
        assert isinstance(resolver, LoRAResolver)
        self.resolvers[resolver_name] = resolver


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    found = Registry()
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request", "vllm.lora.resolver")}
    modules["vllm.lora.request"].LoRARequest = LoRARequest  # type: ignore[attr-defined]
    modules["vllm.lora.resolver"].LoRAResolver = LoRAResolver  # type: ignore[attr-defined]
    modules["vllm.lora.resolver"].LoRAResolverRegistry = found  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, save_language_model: Callable[..., Path]) -> Place:
    folder = tmp_path_factory.mktemp("plugin")
    return Place("llama", folder, save_language_model(folder / "base"), ("pairs", "labelled"))


@pytest.fixture
def resolve(place: Place, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``resolve(base, name)``, by the function that the entry point names."""
    monkeypatch.setenv("LORABANK_BANK", str(place.bank))
    monkeypatch.setenv("LORABANK_VLLM_FOLDER", str(tmp_path / "given"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    group = "vllm.general_plugins"
    (register,) = (EntryPoint(*item, group).load() for item in project["entry-points"][group].items())
    register()
    register()  # vLLM may do it several times
    (found,) = registry.resolvers.values()
    return lambda base, name: asyncio.run(found.resolve_lora(str(base), name))


def generated(place: Place, folder: str, prompt: str) -> str:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place.base), folder).eval()
    _, tokenizer = place.merged(())
    ids = torch.tensor([encoded(place, tokenizer, prompt)])
    new = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    return str(tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def test_a_task_is_its_present_state(place: Place, resolve: Callable[..., Any]) -> None:
    found = resolve(place.base, "pairs")
    assert found.lora_name == "pairs"
    assert generated(place, found.lora_path, "What of sun?") == plainly_generated(
        place, "What of sun?", adapters=("pairs", "labelled")
    )


def test_a_digest_is_that_adapter_alone(place: Place, resolve: Callable[..., Any]) -> None:
    digest = Bank.open(place.bank).snapshot().task("pairs").adapter
    found = resolve(place.base, digest)
    assert (found.lora_name, Path(found.lora_path).name) == (digest, digest)
    assert generated(place, found.lora_path, "What of sun?") == plainly_generated(
        place, "What of sun?", adapters=("pairs",)
    )


def test_a_folder_is_written_once(place: Place, resolve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve(place.base, "pairs")
    monkeypatch.setattr(resolver, "export", None)
    assert resolve(place.base, "pairs").lora_path == first.lora_path
    assert resolve(place.base, "pairs").lora_int_id == first.lora_int_id


def test_a_folder_whose_files_others_deleted_is_written_anew(place: Place, resolve: Callable[..., Any]) -> None:
    folder = Path(resolve(place.base, "pairs").lora_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "adapter_model.safetensors").unlink()
    assert Path(resolve(place.base, "pairs").lora_path) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_in_a_bank_is_refused(
    place: Place, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LORABANK_BANK", str(place.bank))
    monkeypatch.setenv("LORABANK_VLLM_FOLDER", str(place.bank / "adapters"))
    plugin.register()
    assert asyncio.run(registry.resolvers["lorabank"].resolve_lora(str(place.base), "pairs")) is None
    assert "adapters, is in a bank" in caplog.text


def test_unknown_names_are_left_to_other_resolvers(place: Place, resolve: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("nowhere", "", "../../etc", "a" * 10_000, "/etc"):
        assert resolve(place.base, name) is None
    assert not (tmp_path / "given").exists()


def test_the_base_is_known_by_its_weights(
    place: Place,
    resolve: Callable[..., Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    save_language_model: Callable[..., Path],
) -> None:
    copy = shutil.copytree(place.base, tmp_path / "copy")
    assert resolve(copy, "pairs") is not None
    other = save_language_model(tmp_path / "other", "qwen2")
    with caplog.at_level(logging.WARNING):
        assert resolve(other, "pairs") is None
    assert "is not that of the bank" in caplog.text
    assert resolve(tmp_path / "none", "pairs") is None


def test_without_a_bank_nothing_is_registered(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORABANK_BANK", raising=False)
    plugin.register()
    assert registry.resolvers == {}


def test_the_plug_in_costs_nothing_where_no_bank_is_named() -> None:
    code = "import sys; from lorabank.serving.backends.plugin import register; register(); print(*sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "LORABANK_BANK"}
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert not {"torch", "transformers", "vllm", "sqlalchemy"} & set(loaded.stdout.split())


def test_a_bank_that_is_not_there_is_logged(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LORABANK_BANK", str(tmp_path / "none"))
    plugin.register()
    assert asyncio.run(registry.resolvers["lorabank"].resolve_lora("base", "pairs")) is None
    assert "no bank at" in caplog.text
