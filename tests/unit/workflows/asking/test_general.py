"""eval --text: the perplexity of held-out text, as plain PEFT gives it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabank import api
from lorabank.core.config import EvalConfig
from lorabank.core.errors import DataError, IncompatibleError, NotFoundError
from lorabank.workflows.asking.general import pieces
from tests.unit.workflows.language_models import fill_language_bank, plain_model

TEXT = "the cat sat on the mat\n\nwhere it was\nwarm\n\n\nand slept\n"


def log_likelihoods(model: Any, tokenizer: Any, texts: list[str]) -> tuple[list[float], int]:
    """Of every token but the first of each text, its end token included; one plain pass each."""
    found, tokens = [], 0
    for text in texts:
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0]
        found.append(float(logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]].double().sum()))
        tokens += len(ids) - 1
    return found, tokens


def test_before_and_after_are_those_of_plain_peft(make_language_model, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = make_language_model("llama")
    bank = fill_language_bank(tmp_path / "bank", base)
    file = tmp_path / "held-out.txt"
    file.write_text(TEXT)
    (report,) = api.evaluate(bank, EvalConfig(text=str(file), device="cpu", dtype="float32"))
    found = report.general
    api.export(bank, "second", tmp_path / "peft")
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = ["the cat sat on the mat", "where it was warm", "and slept"]
    before, tokens = log_likelihoods(plain_model(base, None), tokenizer, texts)
    after, _ = log_likelihoods(plain_model(base, tmp_path / "peft"), tokenizer, texts)
    assert (found.tokens, found.left_out) == (tokens, 0)
    assert found.before == pytest.approx(math.exp(-sum(before) / tokens), rel=1e-5)
    assert found.after == pytest.approx(math.exp(-sum(after) / tokens), rel=1e-5)
    assert found.change.difference == pytest.approx((sum(after) - sum(before)) / tokens, abs=1e-5)
    assert found.change.rows == 3


def test_an_encoder_has_no_perplexity(bank, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="it has no perplexity of a text"):
        api.evaluate(bank, EvalConfig(text=str(tmp_path / "held-out.txt"), device="cpu"))


def test_paragraphs_and_pieces(tmp_path: Path) -> None:
    file = tmp_path / "held-out.txt"
    file.write_text(TEXT + "\n" + "word " * 400)
    found = pieces(file)
    assert found[:3] == ["the cat sat on the mat", "where it was warm", "and slept"]
    assert [len(piece) for piece in found[3:]] == [999, 999]


@pytest.mark.parametrize(("data", "message"), [(b" \n\n", "holds no text"), (b"a\xff", "is not UTF-8 .byte 1.")])
def test_what_is_no_text(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "held-out.txt"
    file.write_bytes(data)
    with pytest.raises(DataError, match=message):
        pieces(file)
    with pytest.raises(NotFoundError, match="no such file"):
        pieces(tmp_path / "other.txt")
