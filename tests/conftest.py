"""What every test runs under: no network, one thread, none of the developer's own settings."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

# Before anything imports torch or huggingface_hub, which read their settings once. A hub cache of the developer's
# would make "no network" mean different things on different machines, so the tests see an empty one.
_EMPTY_HUB = tempfile.TemporaryDirectory(prefix="lorabank-hub-")
os.environ.update(
    HF_HOME=_EMPTY_HUB.name,
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="agg",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # `python -m tests.variations` asks for two
for name in [name for name in os.environ if name.startswith("LORABANK_") or name in ("HF_HUB_CACHE", "HF_TOKEN")]:
    del os.environ[name]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of functions marked ``by_turns`` that a file tries with the same values, each value has one; the rest is slow.

    The values are those of the largest parameter; those of the others take turns. With more than four such functions
    a value has more than one.
    """
    tests: dict[str, list[pytest.Function]] = {}
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if isinstance(item, pytest.Function) and "by_turns" in marks and "slow" not in marks:
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    alike: dict[tuple[Path, tuple[str, ...]], list[dict[str, list[pytest.Function]]]] = {}
    for product in tests.values():
        params = product[0].callspec.params
        largest = max(params, key=lambda name: len({str(item.callspec.params[name]) for item in product}))
        rows: dict[str, list[pytest.Function]] = {}
        for item in product:
            rows.setdefault(str(item.callspec.params[largest]), []).append(item)
        alike.setdefault((product[0].path, tuple(rows)), []).append(rows)
    for functions in alike.values():
        turns = min(4, len(functions))
        for place, rows in enumerate(functions):
            for number, row in enumerate(rows.values()):
                tried = row[number // turns % len(row)] if (number - place) % turns == 0 else None
                for item in row:
                    if item is not tried:
                        item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Spare the collector libraries and tests: accelerate calls it after each training, a third of a small one."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Drop the empty cache; left to the interpreter's exit it would be a warning."""
    _EMPTY_HUB.cleanup()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Internet sockets answer as on a machine without a network; local ones (AF_UNIX) work."""

    def refuse(address: Any) -> ConnectionError:
        return ConnectionError(f"a test tried to reach {address!r}: tests run without a network")

    def blocked(connect: Any) -> Any:
        def guarded(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                raise refuse(address)
            return connect(self, address)

        return guarded

    def no_lookup(host: Any, *_: Any, **__: Any) -> Any:
        raise refuse(host)

    monkeypatch.setattr(socket.socket, "connect", blocked(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", blocked(socket.socket.connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", no_lookup)


# ----------------------------------------------------------------------------------------------- tiny base models

_WORDS = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
_DECODERS = ("llama", "qwen2", "gpt_neox", "mixtral")
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

SaveBase = Callable[..., Path]


@pytest.fixture(scope="session")
def save_base() -> SaveBase:
    """``save_base(folder, kind="bert", auto=AutoModel, **config)``: a tiny random model and its tokenizer."""
    import torch
    import transformers

    def save(folder: Path, kind: str = "bert", auto: type = transformers.AutoModel, **changes: object) -> Path:
        torch.manual_seed(7)
        auto.from_config(_tiny_config(kind, **changes)).save_pretrained(folder)  # type: ignore[attr-defined]
        _letter_tokenizer(kind).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def make_base(tmp_path: Path, save_base: SaveBase) -> Callable[..., Path]:
    """``make_base(kind, auto=AutoModel, name="base", **config)``: the same, in the test's own folder."""
    return lambda kind, *auto, name="base", **changes: save_base(tmp_path / name, kind, *auto, **changes)


@pytest.fixture(scope="session")
def save_language_model() -> SaveBase:
    """``save_language_model(folder, kind="llama", **config)``: a tiny random text-to-text model and its tokenizer.

    ``"llama"``, ``"qwen2"`` and ``"gpt_neox"`` are causal, ``"t5"`` is an encoder-decoder. One token is one byte, so
    every text has tokens and comes back from them. A causal model's tokenizer writes <s> before a text and brings no
    pad token, T5's writes </s> behind it; both have a chat template, which writes <s> itself.
    """
    import torch
    import transformers

    def save(folder: Path, kind: str = "llama", **changes: object) -> Path:
        torch.manual_seed(7)
        auto = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
        sizes = {"vocab_size": 272, "max_position_embeddings": 512} | changes
        auto.from_config(_tiny_config(kind, **sizes)).save_pretrained(folder)
        _byte_tokenizer(kind).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def make_language_model(tmp_path: Path, save_language_model: SaveBase) -> Callable[..., Path]:
    """``make_language_model(kind="llama", name="base", **config)``: the same, in the test's own folder."""
    return lambda kind="llama", *, name="base", **changes: save_language_model(tmp_path / name, kind, **changes)


def _tiny_config(kind: str, **changes: object) -> PreTrainedConfig:
    import transformers

    sizes: dict[str, object] = {
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 66,
        "pad_token_id": 1,
    }
    if kind == "distilbert":
        names = {
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
        }
        sizes = {names.get(key, key): value for key, value in sizes.items()}
    classes = {
        "bert": transformers.BertConfig,
        "convbert": transformers.ConvBertConfig,
        "squeezebert": transformers.SqueezeBertConfig,
        "roberta": transformers.RobertaConfig,
        "distilbert": transformers.DistilBertConfig,
        "llama": transformers.LlamaConfig,
        "mixtral": transformers.MixtralConfig,
        "qwen2": transformers.Qwen2Config,
        "gpt_neox": transformers.GPTNeoXConfig,
        "gpt2": transformers.GPT2Config,
        "t5": transformers.T5Config,
    }
    if kind == "t5":
        names = {
            "hidden_size": "d_model",
            "num_hidden_layers": "num_layers",
            "num_attention_heads": "num_heads",
            "intermediate_size": "d_ff",
        }
        sizes = {names.get(key, key): value for key, value in (sizes | changes).items()}
        del sizes["max_position_embeddings"]  # its positions are relative, there may be any number
        sizes |= {"d_kv": 16, "eos_token_id": 2, "decoder_start_token_id": 1}
        return transformers.T5Config(**sizes)
    if kind in _DECODERS:
        sizes |= {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 2}
    if kind == "qwen2":
        sizes["num_key_value_heads"] = 1  # its default fits no small model
    # Wide initial weights: with the usual 0.02 all texts would have nearly the same features and logits.
    return classes[kind](**(sizes | {"initializer_range": 0.3} | changes))


def _letter_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """One token per letter; encoders get <s> and </s>, decoders bring no pad token and add nothing."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if kind not in _DECODERS:
        special["pad_token"] = "<pad>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _byte_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """One token per byte, 260 in all; see ``save_language_model``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*_WORDS[:4], *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    around = "<s> $A"
    if kind == "t5":
        special["pad_token"] = "<pad>"
        around = "$A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=_CHAT_TEMPLATE, **special)


# ----------------------------------------------------------------------------------------------- several processes


@pytest.fixture
def launch() -> Callable[..., list[subprocess.CompletedProcess[str]]]:
    """``launch(2, *words)``: ``python words`` in two processes that a launcher would have started, by rank."""

    def run(count: int, *words: str) -> list[subprocess.CompletedProcess[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        command = [sys.executable, *words]
        started = [
            subprocess.Popen(
                command,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]
        try:
            streams = [process.communicate() for process in started]
            return [
                subprocess.CompletedProcess(command, process.returncode, *written)
                for process, written in zip(started, streams, strict=True)
            ]
        finally:
            for process in started:
                process.kill()
                process.wait()

    return run
