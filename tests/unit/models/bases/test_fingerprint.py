from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorabank.core.errors import DataError
from lorabank.models.bases.fingerprint import (
    chat_template_hash,
    config_hash,
    tokenizer_hash,
    weight_facts,
)


def independent_fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """The documented definition, through torch instead of the file's bytes."""
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, names[tensor.dtype], list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {
        "b.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "a.bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "ids": torch.arange(4),
    }


def test_weights_are_named_counted_and_hashed(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    facts = weight_facts(tmp_path)
    assert facts.fingerprint == independent_fingerprint(tensors)
    assert (facts.dtype, facts.parameters) == ("float32", 8)  # integer buffers are no weights


def test_how_the_weights_are_cut_into_files_does_not_matter(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    index = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(index.values()):
        save_file({n: t for n, t in tensors.items() if index[n] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert weight_facts(tmp_path).fingerprint == independent_fingerprint(tensors)


@pytest.mark.parametrize("change", ["bit", "name", "dtype", "shape"])
def test_every_change_changes_the_fingerprint(tmp_path: Path, tensors: dict[str, torch.Tensor], change: str) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    before = weight_facts(tmp_path).fingerprint
    if change == "bit":
        tensors["b.weight"].view(torch.int32)[1, 2] ^= 1
    elif change == "name":
        tensors["c.weight"] = tensors.pop("b.weight")
    elif change == "dtype":
        tensors["b.weight"] = tensors["b.weight"].view(torch.int32).view(torch.float16)
    else:
        tensors["b.weight"] = tensors["b.weight"].reshape(3, 2)
    save_file(tensors, tmp_path / "model.safetensors")
    assert weight_facts(tmp_path).fingerprint != before


def test_a_real_model(make_base) -> None:
    folder = make_base("bert")
    tensors = load_file(folder / "model.safetensors")
    facts = weight_facts(folder)
    assert facts.fingerprint == independent_fingerprint(tensors)
    assert facts.parameters == sum(t.numel() for t in tensors.values())


def test_torch_is_not_imported(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    code = (
        "import sys; from pathlib import Path; from lorabank.models.bases.fingerprint import weight_facts;"
        f"weight_facts(Path({str(tmp_path)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[4])


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(DataError, match="only safetensors") as caught:
        weight_facts(tmp_path)
    assert "save_pretrained" in str(caught.value.hint)


def test_a_cut_file_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"model\.safetensors: it has \d+ bytes"):
        weight_facts(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "absent.safetensors"])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(1)}, tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(DataError, match=name):
        weight_facts(folder)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for file in ("1.safetensors", "2.safetensors"):
        save_file({"w": torch.ones(1), file: torch.ones(1)}, tmp_path / file)
    index = {"1.safetensors": "1.safetensors", "2.safetensors": "2.safetensors", "w": "1.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(DataError, match="'w' is in another file"):
        weight_facts(tmp_path)


def test_the_config_is_what_the_model_is() -> None:
    config = {"hidden_size": 4, "model_type": "bert", "transformers_version": "5.0"}
    canonical = hashlib.sha256(b'{"hidden_size":4,"model_type":"bert"}').hexdigest()
    assert config_hash(config) == canonical
    assert config_hash({"model_type": "bert", "_name_or_path": "x", "hidden_size": 4}) == canonical
    assert config_hash(config | {"hidden_size": 5}) != canonical


def test_the_tokenizer_is_its_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer"):
        tokenizer_hash(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    before = tokenizer_hash(tmp_path)
    (tmp_path / "README.md").write_text("not a part of it")
    assert tokenizer_hash(tmp_path) == before
    (tmp_path / "vocab.txt").write_text("b\na\n")
    assert tokenizer_hash(tmp_path) != before


def test_the_chat_template_is_found_in_both_places(tmp_path: Path) -> None:
    assert chat_template_hash(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ x }}"}))
    expected = hashlib.sha256(b"{{ x }}").hexdigest()
    assert chat_template_hash(tmp_path) == expected
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("{{ x }}")
    assert chat_template_hash(tmp_path) == expected
