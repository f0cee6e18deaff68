from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lorabank.core.errors import ConfigError, DataError, IncompatibleError
from lorabank.core.templates import DEFAULT_TEMPLATE
from lorabank.models.tasks.prompting import (
    encode_completions,
    encode_labels,
    encode_pairs,
    encode_prompts,
)

CORPUS = ["a great film with a plot positive negative", "Option: positive, negative\nAnswer: great", "dull café 😀"]
BEGIN, END = "<|begin|>", "<|end|>"
TEMPLATE = "Review: {text}\nAnswer:"


def wrap(tokenizer: Tokenizer, single: str | None, bos: str | None = BEGIN, eos: str = END) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers whose post-processor puts special tokens around a text as ``single`` says."""
    if single is not None:
        specials = [(token, tokenizer.token_to_id(token)) for token in (bos, eos) if token and token in single]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=specials)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=eos)


def byte_level(single: str | None, **special: Any) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[BEGIN, END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return wrap(tokenizer, single, **special)


def sentence_piece(*, legacy: bool = False) -> PreTrainedTokenizerFast:
    """``legacy``: the blank in front is put there even where the text begins with one."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"])
    tokenizer.train_from_iterator([f"{line} a b c d" for line in CORPUS] * 4, trainer)
    return wrap(tokenizer, "<s> $A", bos="<s>", eos="</s>")


def unigram() -> PreTrainedTokenizerFast:
    words = ["Review:", "Answer:", "a", "great", "film", "with", "plot", "positive", "negative"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((f"▁{word}", -2.0) for word in words)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace()
    return wrap(tokenizer, "$A </s>", bos=None, eos="</s>")


KINDS = {
    "llama-3": lambda: byte_level(f"{BEGIN} $A"),  # adds its beginning
    "smollm": lambda: byte_level(None),  # has one, and adds none
    "gpt-2": lambda: byte_level(None, bos=None),
    "closing": lambda: byte_level(f"{BEGIN} $A {END}"),  # adds an end, too
    "llama-2": sentence_piece,
    "llama-2 legacy": lambda: sentence_piece(legacy=True),
    "t5": unigram,
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {kind: build() for kind, build in KINDS.items()}


def tokens(tokenizer: Any, rows: Any) -> list[list[str]]:
    return [tokenizer.convert_ids_to_tokens(row) for row in rows]


# ----------------------------------------------------------------------------------------------------- templates


def test_a_template_without_text_is_refused(tokenizers) -> None:
    with pytest.raises(ConfigError, match=r"no \{text\}"):
        encode_prompts(tokenizers["gpt-2"], ["x"], "Answer:", 9)


def test_a_text_may_hold_slots_of_its_own(tokenizers) -> None:
    tokenizer = tokenizers["gpt-2"]
    (ids,) = encode_prompts(tokenizer, ["{labels} {text} {0}"], "{text} = {x}", 99).ids
    assert tokenizer.decode(ids) == "{labels} {text} {0} = {x}"


# ------------------------------------------------------------------------------------------------ special tokens


@pytest.mark.parametrize(
    ("kind", "begin", "end"),
    [
        ("llama-3", [BEGIN], []),
        ("smollm", [], []),
        ("gpt-2", [], []),
        ("closing", [BEGIN], []),
        ("llama-2", ["<s>"], []),
        ("t5", [], ["</s>"]),
    ],
)
@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_the_beginning_stands_once_and_only_an_encoder_gets_an_end(tokenizers, kind, begin, end, template) -> None:
    tokenizer = tokenizers[kind]
    text = "a great film"
    words = text if template is None else "Review: a great film\nAnswer:"
    (ids,) = encode_prompts(tokenizer, [text], template, 99, end=bool(end)).ids
    assert ids == tokenizer.convert_tokens_to_ids([*begin, *tokenizer.tokenize(words), *end])


@pytest.mark.parametrize("kind", ["llama-3", "closing", "llama-2"])
def test_a_beginning_that_the_chat_template_wrote_is_not_doubled(tokenizers, kind) -> None:
    tokenizer = tokenizers[kind]
    prompts = [tokenizer.bos_token + "a great film", tokenizer.bos_token * 2 + "a great film"]
    for ids in encode_prompts(tokenizer, prompts, None, 99).ids:
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(ids[1:]).strip() == "a great film"


def test_a_beginning_in_the_text_stays_where_the_tokenizer_adds_none(tokenizers) -> None:
    tokenizer = tokenizers["smollm"]
    (ids,) = encode_prompts(tokenizer, [f"{BEGIN}user"], None, 99).ids
    assert tokenizer.decode(ids) == f"{BEGIN}user"
    assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("kind", "start"),
    [("llama-3", BEGIN), ("smollm", BEGIN), ("gpt-2", END), ("closing", BEGIN), ("llama-2", "<s>"), ("t5", "</s>")],
)
def test_an_empty_prompt_is_a_start_alone(tokenizers, kind, start) -> None:
    tokenizer = tokenizers[kind]
    assert tokens(tokenizer, encode_prompts(tokenizer, ["", ""], None, 1, end=kind == "t5").ids) == [[start], [start]]


# ------------------------------------------------------------------------------------------------------- cutting


def test_a_long_prompt_without_a_template_keeps_its_end_and_its_beginning_token(tokenizers) -> None:
    tokenizer = tokenizers["llama-3"]
    texts = ["one great film with a plot", "great"]
    whole = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) for text in texts]
    encoded = encode_prompts(tokenizer, texts, None, 4)
    assert encoded.cut == 1
    assert list(encoded.ids) == [[tokenizer.bos_token_id, *whole[0][-3:]], [tokenizer.bos_token_id, *whole[1]]]
    t5 = tokenizers["t5"]
    (ids,) = encode_prompts(t5, ["a great film with a plot"], None, 3, end=True).ids
    assert t5.convert_ids_to_tokens(ids) == ["▁a", "▁plot", "</s>"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", ["a great film with a great plot", "dull 😀😀 café   café a\n\ngreat  film", "plot" * 9]
)
def test_with_a_template_only_the_end_of_the_text_is_lost(tokenizers, kind, text) -> None:
    """Every budget gives the tokens of a filled template that holds a beginning of the text, as long as there is room
    for."""
    tokenizer, encoder = tokenizers[kind], kind == "t5"
    one = encode_prompts(tokenizer, [""], TEMPLATE, 99, end=encoder).ids[0]
    whole = encode_prompts(tokenizer, [text], TEMPLATE, 999, end=encoder)
    assert whole.cut == 0
    # what any beginning of the text gives, independent of how the cut is found
    possible = {
        size: tuple(encode_prompts(tokenizer, [text[:size]], TEMPLATE, 999, end=encoder).ids[0])
        for size in range(len(text) + 1)
    }
    for budget in range(len(one), len(whole.ids[0])):
        encoded = encode_prompts(tokenizer, [text], TEMPLATE, budget, end=encoder)
        assert encoded.cut == 1
        assert len(encoded.ids[0]) <= budget
        assert tuple(encoded.ids[0]) in possible.values()
        best = max(len(ids) for ids in possible.values() if len(ids) <= budget)
        assert len(encoded.ids[0]) >= best - 3  # half a character and trailing blanks may go with it


def test_a_cut_prompt_still_asks_its_question(tokenizers) -> None:
    tokenizer = tokenizers["llama-3"]
    template = "Is it so? {text}\nAnswer:"
    budget = 1 + len(tokenizer.tokenize("Is it so? a great film\nAnswer:"))
    (ids,) = encode_prompts(tokenizer, ["a great film with a plot"], template, budget).ids
    said = tokenizer.decode(ids)
    assert said.startswith(f"{BEGIN}Is it so? a great")
    assert said.endswith("\nAnswer:")
    assert "plot" not in said


def test_no_blanks_stay_where_the_text_was_cut(tokenizers) -> None:
    tokenizer = tokenizers["gpt-2"]
    least = len(encode_prompts(tokenizer, ["great"], TEMPLATE, 99).ids[0])
    prompts = encode_prompts(tokenizer, ["great    film a plot"] * 6, TEMPLATE, list(range(least, least + 6)))
    said = [tokenizer.decode(ids) for ids in prompts.ids]
    assert said[0] == "Review: great\nAnswer:"
    assert not any(" \n" in prompt for prompt in said)


class _Slow:
    """A tokenizer without offsets."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert "return_offsets_mapping" not in kwargs
        return self._tokenizer(*args, **kwargs)


def test_without_offsets_the_cut_is_searched(tokenizers) -> None:
    tokenizer, template = tokenizers["gpt-2"], TEMPLATE
    text = "a great film with a great plot"
    whole = len(tokenizer.tokenize(template.replace("{text}", text)))
    for budget in range(len(tokenizer.tokenize(template.replace("{text}", ""))), whole):
        (ids,) = encode_prompts(_Slow(tokenizer), [text], template, budget).ids
        filled = [template.replace("{text}", text[:k]) for k in range(len(text) + 1)]
        counts = [len(tokenizer.tokenize(prompt)) for prompt in filled]
        assert tokenizer.decode(ids) in filled
        assert len(ids) <= budget
        # part of a word can take more tokens than the whole, so the longest text need not be found
        assert len(ids) >= max(count for count in counts if count <= budget) - 3


def test_each_prompt_may_have_a_budget_of_its_own(tokenizers) -> None:
    tokenizer = tokenizers["gpt-2"]
    encoded = encode_prompts(tokenizer, ["a great film"] * 3, None, [1, 2, 3])
    assert tokens(tokenizer, encoded.ids) == [["Ġfilm"], ["Ġgreat", "Ġfilm"], ["a", "Ġgreat", "Ġfilm"]]
    assert encoded.cut == 2


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_a_budget_without_room_is_refused(tokenizers, template) -> None:
    tokenizer = tokenizers["llama-3"]
    least = 2 if template is None else 1 + len(tokenizer.tokenize("Review: \nAnswer:"))
    encode_prompts(tokenizer, ["a great film"], template, [least])
    with pytest.raises(
        DataError, match=f"takes {least} tokens, but beside the answer there is room for {least - 1}"
    ) as e:
        encode_prompts(tokenizer, ["a great film"], template, [least - 1])
    assert "--max-length" in str(e.value.hint)


def test_no_prompts(tokenizers) -> None:
    assert list(encode_prompts(tokenizers["gpt-2"], [], TEMPLATE, 1).ids) == []


# ------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("kind", "word", "end"),
    [
        ("llama-3", "Ġpositive", END),
        ("smollm", "Ġpositive", END),
        ("gpt-2", "Ġpositive", END),
        ("closing", "Ġpositive", END),
        ("llama-2", "▁positive", "</s>"),
        ("llama-2 legacy", "▁positive", "</s>"),
    ],
)
def test_a_glued_answer_begins_with_one_blank_and_ends_once(tokenizers, kind, word, end) -> None:
    tokenizer = tokenizers[kind]
    given = ["positive", " positive", f"positive{end}"]
    assert tokens(tokenizer, encode_completions(tokenizer, given, glued=True)) == [[word, end]] * 3
    assert tokens(tokenizer, encode_completions(tokenizer, given, glued=True, end=False)) == [[word]] * 3


@pytest.mark.parametrize("kind", ["llama-3", "gpt-2", "llama-2", "llama-2 legacy"])
def test_prompt_and_glued_answer_are_the_tokens_of_the_whole(tokenizers, kind) -> None:
    tokenizer = tokenizers[kind]
    (prompt,) = encode_prompts(tokenizer, ["a great film"], TEMPLATE, 99).ids
    (answer,) = encode_completions(tokenizer, ["positive"], glued=True, end=False)
    assert prompt + answer == tokenizer("Review: a great film\nAnswer: positive")["input_ids"]


def test_an_answer_that_is_not_glued_stays_as_it_is(tokenizers) -> None:
    smol = tokenizers["smollm"]
    given = ["positive", " positive"]
    assert [smol.decode(row) for row in encode_completions(smol, given, glued=False)] == [f"{x}{END}" for x in given]
    for kind in ("llama-2", "llama-2 legacy", "t5"):  # these begin every text with a blank of their own
        rows = encode_completions(tokenizers[kind], given, glued=False)
        assert tokens(tokenizers[kind], rows) == [["▁positive", "</s>"]] * 2


@pytest.mark.parametrize("empty", ["", END])
def test_an_empty_answer_is_refused(tokenizers, empty) -> None:
    with pytest.raises(DataError, match="completion 2 is empty"):
        encode_completions(tokenizers["gpt-2"], ["x", empty], glued=False)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="no end token"):
        encode_completions(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())), ["x"], glued=False)


def test_labels_that_are_the_same_tokens_are_refused(tokenizers) -> None:
    t5 = tokenizers["t5"]
    labels = ["positive", "negative"]
    assert list(encode_labels(t5, labels, glued=False)) == list(encode_completions(t5, labels, glued=False))
    with pytest.raises(DataError, match="labels 'xyz' and 'zyx' are the same tokens") as caught:
        encode_labels(t5, ["positive", "xyz", "zyx"], glued=False)  # both are one unknown token
    assert "--set 'label_words=" in str(caught.value.hint)
    with pytest.raises(DataError, match="labels 'good' and ' good'"):
        encode_labels(tokenizers["gpt-2"], ["good", " good"], glued=True)


# --------------------------------------------------------------------------------------------------------- pairs


def pairs(tokenizer: Any, texts: list[str], targets: list[str], max_length: int, **changes: Any) -> Any:
    settings: dict[str, Any] = {"labels": (), "template": None, "glued": True} | changes
    return encode_pairs(tokenizer, texts, targets, max_length=max_length, **settings)


def test_a_completion_is_never_cut_its_row_is_dropped_instead(tokenizers) -> None:
    tokenizer = tokenizers["llama-3"]  # one token for the beginning, one for the end
    answers = [" great film", " great film film film", " great film film film film"]  # one token for each word
    examples = pairs(tokenizer, [" a plot a plot"] * 3, answers, 7)
    assert (examples.cut, examples.dropped) == (2, 1)
    assert [row["index"] for row in examples.rows] == [0, 1]
    assert [tokenizer.decode(row["completion"]) for row in examples.rows] == [f"{x}{END}" for x in answers[:2]]
    whole = tokenizer.tokenize(" a plot a plot")
    for row, length in zip(examples.rows, examples.lengths, strict=True):
        kept = min(len(whole), 7 - 1 - len(row["completion"]))
        assert tokens(tokenizer, [row["prompt"]]) == [[BEGIN, *whole[-kept:]]]
        assert kept >= 1
        assert length == len(row["prompt"]) + len(row["completion"])


def test_no_row_left_is_an_error_that_says_how_long_they_are(tokenizers) -> None:
    with pytest.raises(DataError, match="no training row is left") as caught:
        pairs(tokenizers["gpt-2"], ["a", "a"], ["great film", "great film film film"], 3)
    longest = len(tokenizers["gpt-2"].tokenize("great film film film")) + 1
    assert f"--max-length to {longest + 1}" in str(caught.value.hint)


@pytest.mark.parametrize(("kind", "start"), [("llama-3", BEGIN), ("gpt-2", END), ("t5", "</s>")])
def test_plain_text_is_cut_at_its_end_and_has_an_end_token_only_when_whole(tokenizers, kind, start) -> None:
    tokenizer = tokenizers[kind]
    texts = ["a great film with a plot", "a plot"]
    examples = pairs(tokenizer, ["", ""], texts, 5, glued=kind != "t5")
    whole = [tokenizer.tokenize(text) for text in texts]
    end = tokenizer.eos_token
    assert tokens(tokenizer, [row["prompt"] for row in examples.rows]) == [[start], [start]]
    assert tokens(tokenizer, [row["completion"] for row in examples.rows]) == [whole[0][:4], [*whole[1], end]]
    assert (examples.cut, examples.dropped) == (1, 0)
    assert list(examples.lengths) == [5, 2 + len(whole[1])]


def test_labelled_texts_are_asked_with_their_labels(tokenizers) -> None:
    tokenizer = tokenizers["llama-2"]
    labels = ("positive", "negative")
    examples = pairs(tokenizer, ["a great film"], ["negative"], 99, labels=labels, template=DEFAULT_TEMPLATE)
    (row,) = examples.rows
    said = "a great film\nOption: positive, negative\nAnswer: negative"
    assert row["prompt"] + row["completion"] == [*tokenizer(said)["input_ids"], tokenizer.eos_token_id]
    assert tokens(tokenizer, [row["completion"]]) == [["▁negative", "</s>"]]


def test_a_template_that_does_not_fit_is_an_error_not_a_matter_of_rows(tokenizers) -> None:
    labels = ("positive", "negative")
    with pytest.raises(DataError, match="the prompt template without its text takes"):
        pairs(tokenizers["gpt-2"], ["a film"], ["positive"], 5, labels=labels, template=DEFAULT_TEMPLATE)


def test_colliding_labels_are_refused_before_anything_is_learnt(tokenizers) -> None:
    with pytest.raises(DataError, match="same tokens"):
        pairs(tokenizers["t5"], ["a"], ["xx"], 99, labels=("xx", "yy"), template=TEMPLATE, glued=False)
