"""``serve --backend``: vLLM's tokens, with plain PEFT behind them, are those of the bank's own model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig
from lorabank.core.observer import SilentObserver
from tests.contract.fake_vllm import FakeVllm
from tests.contract.serving import Here
from tests.contract.test_text_to_text import Place

COMPLETIONS, LOAD, UNLOAD = "/v1/completions", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
TEXTS = ["What of sun?", "What of snow?", "Tell me about rain"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, save_language_model: Callable[..., Path]) -> Place:
    """Pairs, conversations and labels, a composition that routes between all, and one of full rank."""
    folder = tmp_path_factory.mktemp("backend")
    made = Place("llama", folder, save_language_model(folder / "base"), ("pairs", "chat", "labelled"))
    routed = ComposeConfig(mode="routed", name="routed", router="kmeans", device="cpu")
    api.compose(made.bank, routed, SilentObserver())
    ties = ComposeConfig(mode="merged", merger="ties", name="ties", tasks="pairs,chat", scores=False, device="cpu")
    api.compose(made.bank, ties, SilentObserver())
    mean = ComposeConfig(mode="manual", name="mean", tasks="pairs,chat", weights="pairs=0.5,chat=0.25", device="cpu")
    api.compose(made.bank, mean, SilentObserver())
    gated = ComposeConfig(mode="gated", name="gated", tasks="pairs,chat", stages="last", batch_size=8, device="cpu")
    api.compose(made.bank, gated, SilentObserver())
    return made


@pytest.fixture(scope="module")
def own(place: Place) -> Iterator[Here]:
    """The bank's own model."""
    with Here(place.bank) as server:
        yield server


@pytest.fixture
def vllm(place: Place) -> Iterator[FakeVllm]:
    with FakeVllm(place.base) as server:
        yield server


@pytest.fixture
def make(place: Place, vllm: FakeVllm, tmp_path: Path) -> Callable[..., Here]:
    def made(**config: Any) -> Here:
        return Here(place.bank, backend=vllm.address, **({"backend_folder": str(tmp_path / "adapters")} | config))

    return made


@pytest.fixture
def here(make: Callable[..., Here]) -> Iterator[Here]:
    """The same bank, whose tokens vLLM makes."""
    with make() as server:
        yield server


def written(server: Here, model: str = "pairs", prompt: Any = TEXTS[0], **more: Any) -> httpx.Response:
    return server.post(COMPLETIONS, {"model": model, "prompt": prompt, "max_tokens": 5, **more})


def kept(response: httpx.Response) -> dict[str, Any]:
    """An answer without what is new in each."""
    assert response.status_code == 200, response.text
    return {key: value for key, value in response.json().items() if key not in ("id", "created")}


# ---------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("model", ["pairs", "chat", "mean"])
def test_free_text_is_that_of_the_bank_s_own_model(own: Here, here: Here, model: str) -> None:
    found, expected = (written(server, model, TEXTS, max_tokens=12) for server in (here, own))
    assert kept(found) == kept(expected)
    assert any(choice["text"] for choice in kept(found)["choices"])
    for name in ("task", "task-id", "adapters", "bank-revision"):
        assert found.headers[f"x-lorabank-{name}"] == expected.headers[f"x-lorabank-{name}"]


def test_routed_texts_labels_among_them(own: Here, here: Here) -> None:
    found, expected = (kept(written(server, "routed", [*TEXTS, "sun 1", "hail 3"])) for server in (here, own))
    assert [one["text"] for one in found["choices"]] == [one["text"] for one in expected["choices"]]
    assert [one["lorabank"]["task"] for one in found["choices"]] == [
        one["lorabank"]["task"] for one in expected["choices"]
    ]
    assert found["usage"] == expected["usage"]


def test_a_conversation(own: Here, here: Here) -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Tell me about fog"}], "max_tokens": 6}
    found, expected = (server.post("/v1/chat/completions", body) for server in (here, own))
    assert kept(found) == kept(expected)


def test_labels_have_the_probabilities_of_the_bank_s_own_model(own: Here, here: Here) -> None:
    body = {"model": "labelled", "input": ["sun 1", "rain 2", "dew 7"], "all_labels": True}
    found, expected = (server.post("/v1/classify", body) for server in (here, own))
    assert (found.status_code, expected.status_code) == (200, 200)
    for one, other in zip(found.json()["data"], expected.json()["data"], strict=True):
        assert (one["label"], one["lorabank"]) == (other["label"], other["lorabank"])
        assert one["labels"] == pytest.approx(other["labels"], rel=1e-4)


def test_an_answer_ends_at_a_stop_text(own: Here, here: Here) -> None:
    whole = kept(written(own, max_tokens=12))["choices"][0]["text"]
    assert len(whole) > 3
    stop = [whole[len(whole) // 2 :][:2]]
    found, expected = (kept(written(server, max_tokens=12, stop=stop)) for server in (here, own))
    assert found == expected
    assert found["choices"][0]["finish_reason"] == "stop"
    assert stop[0] not in found["choices"][0]["text"]


def test_a_stream_passes_the_tokens_on_as_they_come(own: Here, here: Here) -> None:
    found, expected = (written(server, max_tokens=8, stream=True) for server in (here, own))
    texts = []
    for answer in (found, expected):
        events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n")[:-2]]
        texts.append([event["choices"][0]["text"] for event in events])
        assert answer.text.endswith("data: [DONE]\n\n")
    assert texts[0] == texts[1]
    assert len([text for text in texts[0] if text]) > 1
    assert found.headers["x-lorabank-task"] == "pairs"


def test_how_tokens_are_chosen_is_passed_on(here: Here, vllm: FakeVllm) -> None:
    written(here, temperature=0.5, top_p=0.75, repetition_penalty=1.25, seed=7, stop=["x"], max_tokens=3)
    path, body = vllm.calls[-1]
    assert path == COMPLETIONS
    expected = {"temperature": 0.5, "top_p": 0.75, "repetition_penalty": 1.25, "seed": 7, "stop": ["x"]}
    assert {name: body[name] for name in expected} == expected
    assert (body["max_tokens"], body["top_k"], body["min_p"], body["return_token_ids"]) == (3, 0, 0.0, True)
    assert (body["presence_penalty"], body["frequency_penalty"]) == (0.0, 0.0)
    assert all(isinstance(token, int) for token in body["prompt"])


# --------------------------------------------------------------------------------------------------------- adapters


def test_an_adapter_is_loaded_when_vllm_does_not_know_it(here: Here, vllm: FakeVllm, place: Place) -> None:
    written(here, "labelled", "sun 1")
    assert vllm.paths() == [COMPLETIONS, LOAD, COMPLETIONS]
    (name,) = vllm.models
    folder = Path(here.config.backend_folder or "", name)
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    written(here, "labelled", "rain 2")
    assert vllm.paths() == [COMPLETIONS]


def test_an_adapter_alone_is_named_by_its_digest(place: Place, vllm: FakeVllm, tmp_path: Path) -> None:
    bank = Path(shutil.copytree(place.bank, tmp_path / "bank"))
    one = ComposeConfig(mode="manual", name="alone", tasks="pairs", scores=False, device="cpu")
    api.compose(bank, one, SilentObserver())
    with Here(bank, backend=vllm.address, backend_folder=str(tmp_path / "adapters")) as here:
        assert [written(here, model).status_code for model in ("alone", "pairs")] == [200, 200]
    alone, with_others = vllm.models
    assert alone == Bank.open(bank).snapshot().task("pairs").adapter
    assert with_others.startswith("sum-")


def test_calls_that_come_together_load_an_adapter_once(here: Here, vllm: FakeVllm) -> None:
    body = {"model": "pairs", "prompt": TEXTS[0], "max_tokens": 3}
    found = here.together(*[("POST", COMPLETIONS, {"json": body})] * 8)
    assert {answer.status_code for answer in found} == {200}
    assert vllm.paths().count(LOAD) == 1


def test_a_backend_that_was_started_again_is_given_its_adapters_again(here: Here, vllm: FakeVllm) -> None:
    before = kept(written(here))
    vllm.stop()
    vllm.start()
    vllm.paths()
    assert kept(written(here)) == before
    assert vllm.paths() == [COMPLETIONS, LOAD, COMPLETIONS]


def test_few_folders_are_kept_and_each_is_unloaded_before_it_goes(make: Callable[..., Here], vllm: FakeVllm) -> None:
    with make(backend_adapters=1) as here:
        folder = Path(here.config.backend_folder or "")
        first = kept(written(here, "mean"))
        (old,) = vllm.models
        written(here, "pairs")
        assert [path.name for path in folder.iterdir()] == list(vllm.models)
        assert old not in vllm.models
        assert UNLOAD in vllm.paths()
        assert kept(written(here, "mean")) == first


def test_an_adapter_that_vllm_has_evicted_is_unloaded_too(make: Callable[..., Here], vllm: FakeVllm) -> None:
    with make(backend_adapters=1) as here:
        written(here, "mean")
        vllm.evicted.update(vllm.models)
        written(here, "pairs")
        assert [path.name for path in Path(here.config.backend_folder or "").iterdir()] == list(vllm.models)
        assert len(vllm.models) == 1


@pytest.mark.parametrize("gone", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_whose_files_others_deleted_is_written_anew(here: Here, vllm: FakeVllm, gone: str) -> None:
    first = kept(written(here))
    (name,) = vllm.models
    folder = Path(here.config.backend_folder or "", name)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / gone).unlink()
    vllm.models.clear()
    assert kept(written(here)) == first
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_stays_while_vllm_may_still_read_it(make: Callable[..., Here], vllm: FakeVllm) -> None:
    vllm.bad[UNLOAD] = 500, "{}"
    with make(backend_adapters=1) as here:
        written(here, "mean")
        written(here, "pairs")
        assert len(list(Path(here.config.backend_folder or "").iterdir())) == 2
