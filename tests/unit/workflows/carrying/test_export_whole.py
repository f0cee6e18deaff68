"""Whole models: plain transformers loads the folder and gives lorabank's answers; GGUF goes through a converter."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, PredictConfig
from lorabank.core.errors import ConfigError, IncompatibleError, MissingExtraError, StorageError
from lorabank.models.bases.open_base import OpenBase
from lorabank.workflows.assemble import RuntimeSettings, load_composer, load_runtime
from tests.unit.workflows.carrying.test_model_card import parts, run
from tests.unit.workflows.conftest import TEXTS
from tests.unit.workflows.language_models import CLOSE, PROMPTS, add, bank_logits, own_state, peft_logits


def test_a_classifier_answers_as_in_the_bank(
    bert_bank: Path, tmp_path: Path, logits: Callable[..., torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    result = api.export(bert_bank, "second", tmp_path / "out", merged=True)
    assert (result.kind, result.state) == ("model", "now")
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(result.files)
    model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer(list(TEXTS), padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        found = model(**inputs).logits
    torch.testing.assert_close(found, logits(bert_bank, "second", own_state(bert_bank, "second")), **CLOSE)
    assert model.config.id2label == {0: "one", 1: "three", 2: "two"}
    (expected,) = api.predict(bert_bank, ["z y z"], PredictConfig(task="second", device="cpu"))
    label, _ = run(tmp_path / "out", "z y z", capsys)
    assert label == expected.label


@pytest.mark.by_turns
@pytest.mark.parametrize(
    ("kind", "modules", "changes"),
    [
        ("llama", "all-linear", {}),
        ("llama", "embed_tokens,q_proj", {"tie_word_embeddings": True}),
        ("mixtral", "down_proj,q_proj", {"num_key_value_heads": 1, "num_local_experts": 3}),
        ("gpt2", "all-linear", {"tie_word_embeddings": True}),
        ("t5", "all-linear", {}),
    ],
)
def test_a_language_model_answers_as_in_the_bank(
    kind: str, modules: str, changes: dict[str, Any], tmp_path: Path, make_language_model: Callable[..., Path]
) -> None:
    base, bank = make_language_model(kind, **changes), tmp_path / "bank"
    add(bank, base, "one", ("no", "yes"), 0, target_modules=modules, lora_dropout=0.0, r=2)
    api.export(bank, "one", tmp_path / "out", merged=True)
    found, expected = peft_logits(tmp_path / "out", None), bank_logits(bank, own_state(bank, "one"))
    for ours, theirs, bare in zip(found, expected, peft_logits(base, None), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
        assert (ours - bare).abs().max() > 1e-3


def test_a_composition_and_a_dtype(tmp_path: Path, make_language_model: Callable[..., Path]) -> None:
    base, bank = make_language_model(), tmp_path / "bank"
    for seed, name in enumerate(("one", "two")):
        add(bank, base, name, ("no", "yes"), seed, r=2, strategy="isolated")
    api.compose(bank, ComposeConfig(mode="manual", name="both", device="cpu", set=("weights=one=0.5,two=-1",)))
    api.export(bank, "both", tmp_path / "out", merged=True)
    snapshot = Bank.open(bank).snapshot()
    state = {snapshot.adapter_of("one").digest: 0.5, snapshot.adapter_of("two").digest: -1.0}
    for ours, theirs in zip(peft_logits(tmp_path / "out", None), bank_logits(bank, state), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    result = api.export(bank, "both", tmp_path / "half", merged=True, dtype="bfloat16")
    assert result.note.endswith("merged into the base, bfloat16")
    for folder, dtype in (("out", torch.float32), ("half", torch.bfloat16)):
        with safe_open(tmp_path / folder / "model.safetensors", "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {dtype}  # noqa: SIM118


def test_a_merge_of_full_rank_is_a_whole_model(tmp_path: Path, make_language_model: Callable[..., Path]) -> None:
    base, bank = make_language_model(), tmp_path / "bank"
    for seed, name in enumerate(("one", "two")):
        add(bank, base, name, ("no", "yes"), seed, r=2, strategy="isolated", target_modules="all-linear")
    config = ComposeConfig(mode="merged", merger="ties", name="trimmed", device="cpu", set=("density=0.5",))
    api.compose(bank, config)
    with pytest.raises(ConfigError, match="its delta weights have full rank") as refused:
        api.export(bank, "trimmed", tmp_path / "out")
    assert refused.value.commands[-1] == ("export", "trimmed", "FOLDER", "--merged")
    assert "in one adapter by ties, full rank on" in api.export(bank, "trimmed", tmp_path / "out", merged=True).note
    opened = Bank.open(bank)
    snapshot = opened.snapshot()
    settings = RuntimeSettings(device="cpu", dtype="float32", batch_size=1)
    runtime = load_runtime(opened, snapshot, OpenBase(snapshot.base), settings)
    composer, members = load_composer(opened, snapshot, snapshot.composition("trimmed"), lambda: runtime)
    runtime.enter(composer.plan(members[-1].position, ()))
    for ours, prompt in zip(peft_logits(tmp_path / "out", None), PROMPTS, strict=True):
        with torch.inference_mode():
            theirs = runtime.base.model(torch.tensor([runtime.base.tokenizer(prompt)["input_ids"]])).logits[0]
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_the_card_of_a_whole_model_names_no_peft(tmp_path: Path, make_language_model: Callable[..., Path]) -> None:
    base, bank = make_language_model(), tmp_path / "bank"
    add(bank, base, "one", ("no", "yes"), 0)
    api.export(bank, "one", tmp_path / "out", merged=True)
    front, text, code = parts((tmp_path / "out/README.md").read_text(encoding="utf-8"))
    assert front["library_name"] == "transformers"
    assert "A model with a LoRA adapter merged into its weights" in text
    assert "peft" not in code


def test_the_generation_config_is_the_bases_also_where_transformers_warns_of_it(
    tmp_path: Path, make_language_model: Callable[..., Path]
) -> None:
    base, bank = make_language_model(), tmp_path / "bank"
    said = {"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2, "bos_token_id": 0}  # as Llama 2 has it
    (base / "generation_config.json").write_text(json.dumps(said))
    add(bank, base, "one", ("no", "yes"), 0)
    api.export(bank, "one", tmp_path / "out", merged=True)
    found = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert {key: found[key] for key in said} == said


@pytest.mark.parametrize("merged", [True, False])
def test_a_disk_that_is_full_leaves_nothing(merged: bool, bert_bank: Path, tmp_path: Path) -> None:
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))  # less than the weights, more than the card
    try:
        with pytest.raises(StorageError, match=r"out.*: File too large") as refused:
            api.export(bert_bank, "second", tmp_path / "out", merged=merged)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert refused.value.unchanged == "nothing was written"
    assert list(tmp_path.glob("*out*")) == []
    assert list(tmp_path.glob(".*out*")) == []


def test_what_cannot_be_merged_is_refused_in_one_line(
    bank: Path, compose: Callable[..., None], tmp_path: Path
) -> None:
    compose("manual")
    with pytest.raises(IncompatibleError, match="'manual' is a sum of first, second, which has no head") as refused:
        api.export(bank, "manual", tmp_path / "out", merged=True)
    assert refused.value.commands[0] == ("export", "first", "./first-model", "--merged")
    with pytest.raises(IncompatibleError, match="the bank's base is a classifier"):
        api.export(bank, "second", tmp_path / "out", merged="gguf")
    with pytest.raises(ConfigError, match="--dtype is that of a whole model"):
        api.export(bank, "second", tmp_path / "out", dtype="float16")
    with pytest.raises(ConfigError, match="--check is for adapters"):
        api.export(bank, "second", tmp_path / "out", merged=True, check="vllm")
    assert not list(tmp_path.glob("*out*"))


CONVERTER = """\
import argparse, json, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("--outfile", type=pathlib.Path)
parser.add_argument("--outtype")
given = parser.parse_args()
if not (given.model / "model.safetensors").is_file():
    sys.exit("no weights")
if json.loads((given.model / "config.json").read_text())["model_type"] != "llama":
    sys.exit("a warning\\nModel Gpt2 is not supported")
given.outfile.write_text(given.outtype)
"""


def test_gguf_goes_through_the_converter_on_path(
    tmp_path: Path, make_language_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = tmp_path / "bank"
    add(bank, make_language_model(), "one", ("no", "yes"), 0, set=('prompt_template=say """{text}""" {labels} {{x}}',))
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    with pytest.raises(MissingExtraError, match=r"there is no convert_hf_to_gguf\.py of llama\.cpp on PATH"):
        api.export(bank, "one", tmp_path / "out", merged="gguf")
    tool = tmp_path / "tools/convert_hf_to_gguf.py"
    tool.parent.mkdir()
    tool.write_text(CONVERTER)
    tool.chmod(0o755)
    result = api.export(bank, "one", tmp_path / "out", merged="gguf", dtype="float16")
    assert result.files == ("Modelfile", "README.md", "one.gguf")
    assert sorted(os.listdir(tmp_path / "out")) == list(result.files)
    assert (tmp_path / "out/one.gguf").read_text() == "f16"
    lines = (tmp_path / "out/Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./one.gguf"
    quotes = '{{ "\\"\\"\\"" }}'
    assert lines[1] == f'TEMPLATE """say {quotes}{{{{ .Prompt }}}}{quotes} no, yes {{{{ "{{{{" }}}}x}}}}"""'
    assert lines[2:] == ["PARAMETER temperature 0", "PARAMETER num_predict 50"]
    assert "ollama create one -f Modelfile" in (tmp_path / "out/README.md").read_text(encoding="utf-8")


def test_what_the_converter_refuses_is_said_in_its_words(
    tmp_path: Path, make_language_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, tool = tmp_path / "bank", tmp_path / "convert_hf_to_gguf.py"
    add(bank, make_language_model("gpt2"), "one", ("no", "yes"), 0)
    tool.write_text(CONVERTER)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IncompatibleError, match=r"gguf\.py: Model Gpt2 is not supported$"):
        api.export(bank, "one", tmp_path / "out", merged="gguf")
    assert not list(tmp_path.glob("*out*"))
