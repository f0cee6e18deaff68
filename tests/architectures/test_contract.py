"""Every class of transformers' mappings is right or refused in one line, as docs/bases.md says.

The whole of it is ``python -m tests.architectures`` (minutes); here stands one class of each kind that was wrong once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from tests.architectures import contract, table, zoo
from tests.architectures.contract import Verdict
from tests.architectures.zoo import Pair

KINDS = {
    "SEQ_CLS-Canine": "no input embeddings",
    "SEQ_CLS-ConvBert": "padding reaches the texts of a batch",
    "SEQ_CLS-DebertaV2-v3": "a layer that reads a table of positions, not the batch",
    "SEQ_CLS-DeepseekV3": "targets that PEFT takes for fused experts",
    "SEQ_CLS-Longformer": "time before batch, and outputs changed in place",
    "SEQ_CLS-OPT-350m": "hidden states of another width than the config's",
    "SEQ_CLS-XLNet": "no limit of the length, and classified by the last column",
    "SEQ_CLS-GPT2": "weights that are kept transposed",
    "CAUSAL_LM-Bart": "a decoder that cannot be told its positions",
    "CAUSAL_LM-Llama4Text": "a router that only is built on a linear layer",
    "CAUSAL_LM-Phi4Multimodal": "the default modules stand in a part for images",
    "CAUSAL_LM-RecurrentGemma": "padding enters a recurrent state",
    "SEQ_2_SEQ_LM-M2M100": "no shift of its own from labels to the decoder's inputs",
    "SEQ_2_SEQ_LM-SwitchTransformers": "experts that see some tokens of the batch",
}
LARGE = ("CAUSAL_LM-Llama4Text", "CAUSAL_LM-Phi4Multimodal", "SEQ_2_SEQ_LM-M2M100", "SEQ_2_SEQ_LM-SwitchTransformers")
"""Kinds whose smallest models take ten seconds."""
PAIRS = {str(pair): pair for pair in zoo.pairs()}


@pytest.fixture(scope="module")
def page() -> str:
    written = table.PAGE.read_text(encoding="utf-8")
    if table.version_of(written) != transformers.__version__:
        pytest.skip(f"docs/bases.md is about transformers {table.version_of(written)}")
    return written


def _hold(pair: Pair, page: str) -> None:
    verdicts = contract.judge(pair)
    assert [verdict for verdict in verdicts if verdict.kind == "wrong"] == []
    assert table.row(pair, verdicts) in table.rows_of(page)


@pytest.mark.by_turns
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in KINDS]
)
def test_one_of_each_kind(name: str, page: str) -> None:
    _hold(PAIRS[name], page)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PAIRS.keys() - KINDS.keys()))
def test_every_other_class(name: str, page: str) -> None:
    _hold(PAIRS[name], page)


def test_the_page_names_every_class(page: str) -> None:
    blank = [table.row(pair, [Verdict(pair, table.BOTH, "right")]).split(" | ")[0] for pair in PAIRS.values()]
    assert sorted(line.split(" | ")[0] for line in table.rows_of(page)) == sorted(blank)
    assert "| wrong" not in page


class TestWhatTheContractSees:
    """Answers that are wrong on purpose."""

    @pytest.fixture
    def case(self, tmp_path: Path) -> contract.Case:
        pair = PAIRS["SEQ_CLS-Bert"]
        zoo.build(pair, zoo.tiny_config(pair), tmp_path / "base")
        return contract.Case(pair, tmp_path / "base", "auto")

    @pytest.mark.parametrize("step", [contract.answers, contract.exported])
    def test_an_answer_of_another_adapter(self, case: contract.Case, step: object) -> None:
        right = case.expected
        step(case)  # type: ignore[operator]
        case.expected = right.roll(1, 0)
        with pytest.raises(contract.Wrong):
            step(case)  # type: ignore[operator]

    def test_a_step_against_another_gradient(self, case: contract.Case, monkeypatch: pytest.MonkeyPatch) -> None:
        contract.trained_step(case)
        run = contract.train_adapter

        def backwards(*given: object) -> object:
            trained = run(*given)  # type: ignore[arg-type]
            return replace(trained, factors=replace(trained.factors, B={n: -b for n, b in trained.factors.B.items()}))

        monkeypatch.setattr(contract, "train_adapter", backwards)
        with pytest.raises(contract.Wrong, match="does not move against its gradient"):
            contract.trained_step(case)

    def test_a_loss_that_padding_reaches(self, case: contract.Case, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = contract.Plain.loss
        monkeypatch.setattr(contract.Plain, "loss", lambda *given: plain(*given) + torch.tensor(0.01))
        with pytest.raises(contract.Wrong, match="of single rows"):
            contract.trained_step(case)
