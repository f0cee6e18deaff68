"""Repositories on the hub, without the hub: what is sent comes back, and nothing is left of what fails."""

from __future__ import annotations

import fnmatch
import inspect
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelInfo, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from lorabank_cli.main import main

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import EvalConfig, PredictConfig
from lorabank.core.errors import (
    ConfigError,
    DamagedError,
    DataError,
    ExistsError,
    IncompatibleError,
    LorabankError,
    MissingExtraError,
    NotFoundError,
    StorageError,
)
from tests.unit.workflows.carrying.test_model_card import parts
from tests.unit.workflows.conftest import TEXTS

NAME = "me/my-bank"
FIRST = "c0ffee" * 6


def answer(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(f"{status} from the hub\nmore", response=response)


class FakeHub:
    """Repositories by name; one `failing` is raised in place of every answer."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: dict[str, str] = {}
        self.asked = 0
        self.failing: Exception | None = None

    def _found(self, name: str) -> dict[str, bytes]:
        self.asked += 1
        if self.failing is not None:
            raise self.failing
        if name not in self.files:
            raise answer(RepositoryNotFoundError, 404)
        return self.files[name]

    def model_info(self, name: str, *, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        held = [{"rfilename": path, "size": len(data)} for path, data in self._found(name).items()]
        return ModelInfo(id=name, sha="c0ffee" * 6, private=self.private[name], siblings=held)

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        if name not in self.files:
            self.files[name], self.private[name] = {".gitattributes": b"lfs"}, private
        assert exist_ok

    def create_commit(
        self, name: str, operations: Sequence[Any], *, commit_message: str, parent_commit: str | None
    ) -> Any:
        held = self._found(name)
        if parent_commit not in (None, self.commits.get(name, FIRST)):
            raise answer(HfHubHTTPError, 412)
        for one in operations:
            if isinstance(one, CommitOperationAdd):
                with one.as_file() as file:
                    held[one.path_in_repo] = file.read()
            else:
                del held[one.path_in_repo]
        return SimpleNamespace(oid="c0ffee" * 6)

    def snapshot_download(
        self, name: str, *, revision: str, local_dir: Path, allow_patterns: Sequence[str] = ("*",)
    ) -> str:
        for path, data in self._found(name).items():
            if any(fnmatch.fnmatch(path, pattern) for pattern in allow_patterns):
                (local_dir / path).parent.mkdir(parents=True, exist_ok=True)
                (local_dir / path).write_bytes(data)
        return str(local_dir)


class Checked:
    """What stands for `HfApi`: every call must fit the signature of the real method."""

    def __init__(self, fake: FakeHub) -> None:
        self._fake = fake

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            inspect.signature(getattr(HfApi, name)).bind(self, *args, **kwargs)
            return getattr(self._fake, name)(*args, **kwargs)

        return call


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Checked(fake))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("lorabank.models.bases.hub.hub_reachable", lambda: True)
    return fake


@pytest.fixture
def sent(bank: Path, hub: FakeHub) -> dict[str, bytes]:
    """A bank's repository."""
    api.push(bank, NAME)
    return hub.files[NAME]


def labels(bank: Path, task: str) -> list[str]:
    return [one.label for one in api.predict(bank, TEXTS, PredictConfig(task=task, device="cpu"))]


def test_a_bank_comes_back_as_it_was(bank: Path, hub: FakeHub, tmp_path: Path, compose: Callable[..., None]) -> None:
    compose("manual", name="both")
    pushed = api.push(bank, NAME)
    assert (pushed.what, pushed.private, hub.private[NAME]) == ("bank", True, True)
    assert {*pushed.files} == hub.files[NAME].keys() - {".gitattributes"}
    pulled = api.pull(tmp_path / "deep/theirs", NAME)
    assert (pulled.tasks, pulled.commit) == (("first", "second"), pushed.commit)
    assert api.overview(tmp_path / "deep/theirs").compositions == api.overview(bank).compositions
    assert api.verify(tmp_path / "deep/theirs", full=True) == ()
    assert labels(tmp_path / "deep/theirs", "second") == labels(bank, "second")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["theirs"]


def test_the_card_of_a_bank_holds_results_and_the_matrix(bank: Path, hub: FakeHub) -> None:
    (report,) = api.evaluate(bank, EvalConfig(device="cpu", forgetting_matrix=True))
    api.push(bank, NAME, license="apache-2.0", datasets=("owner/letters",))
    card = ModelCard(hub.files[NAME]["README.md"].decode())
    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["owner/letters"])
    assert {"lorabank", "continual-learning"} <= set(card.data.tags)
    found = {one.dataset_name: one.metric_value for one in card.data.eval_results}
    assert found == pytest.approx(dict(zip(report.tasks, report.values[-1], strict=True)), abs=1e-4)
    for name, row in zip(("no task", *report.tasks), report.values, strict=True):
        assert f"| {name} | {' | '.join('' if v is None else f'{v:.3f}' for v in row)} |" in card.text
    assert f"lorabank -b bank pull {NAME}" in card.text


def test_a_task_is_a_folder_of_peft_whose_card_loads_it(
    bank: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pushed = api.push(bank, "me/second", task="second", public=True)
    assert (pushed.what, hub.private["me/second"]) == ("task second", False)
    files = hub.files["me/second"]
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "labels.json"} < files.keys()
    (tmp_path / "got").mkdir()
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name: hub.snapshot_download(name, revision="main", local_dir=tmp_path / "got"),
    )
    _, _, code = parts(files["README.md"].decode())
    capsys.readouterr()
    with chdir(tmp_path):
        exec(code.replace('"a text"', repr(TEXTS[0])), {})
    assert capsys.readouterr().out.strip() == labels(bank, "second")[0]


def test_a_base_of_the_hub_is_named_as_others_find_it(
    bank: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files may lie in a folder of this machine, as the converted weights of a GGUF file do."""
    monkeypatch.setattr("lorabank.workflows.carrying.export.name_on_hub", lambda base: "owner/base")
    api.push(bank, "me/first", task="first")
    files = hub.files["me/first"]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "owner/base"
    assert b"base = 'owner/base'" in files["README.md"]
    assert b"| base model | owner/base |" in files["README.md"]


def test_a_later_push_takes_out_what_the_bank_lacks(
    bank: Path, hub: FakeHub, sent: dict[str, bytes], tmp_path: Path
) -> None:
    before = {path for path in sent if path.startswith("adapters/")}
    api.remove(bank, "second")
    api.gc(bank)
    api.push(bank, NAME)
    assert {path for path in sent if path.startswith("adapters/")} < before
    assert api.pull(tmp_path / "theirs", NAME).tasks == ("first",)


def test_a_dry_run_asks_nobody(bank: Path, hub: FakeHub) -> None:
    planned = api.push(bank, NAME, dry_run=True)
    assert (planned.commit, hub.asked, hub.files) == (None, 0, {})
    assert {"bank.db", "bank.json", "README.md"} < planned.files.keys()
    assert planned.files["bank.json"] == (bank / "bank.json").stat().st_size


def test_repositories_of_something_else_are_left_alone(
    bank: Path, hub: FakeHub, sent: dict[str, bytes], tmp_path: Path
) -> None:
    hub.files |= {"me/other": {"weights.bin": b"1"}, "me/shown": {"README.md": b"hi"}}
    hub.private |= {"me/other": True, "me/shown": False}
    other = {**sent, "bank.json": json.dumps(json.loads(sent["bank.json"]) | {"id": "f" * 32}).encode()}
    hub.files["me/theirs"], hub.private["me/theirs"] = other, True
    before = {name: dict(files) for name, files in hub.files.items()}
    for name, said in [
        ("me/other", r"me/other holds something else: 'weights\.bin'"),
        ("me/shown", "me/shown is public"),
        ("me/theirs", r"me/theirs is another bank \(ffffffffffff\)"),
    ]:
        with pytest.raises(ExistsError, match=said):
            api.push(bank, name)
    with pytest.raises(ExistsError, match=f"{NAME} holds something else"):
        api.push(bank, NAME, task="first")
    assert hub.files == before


def test_a_push_between_two_looks_is_not_overwritten(bank: Path, hub: FakeHub, sent: dict[str, bytes]) -> None:
    before = dict(sent)
    hub.commits[NAME] = "f" * 40  # after the look
    with pytest.raises(StorageError, match=f"^{NAME}: 412 from the hub$"):
        api.push(bank, NAME)
    assert sent == before


def test_a_manifest_that_cannot_be_read_is_left_alone(bank: Path, hub: FakeHub, sent: dict[str, bytes]) -> None:
    newer = json.dumps(json.loads(sent["bank.json"]) | {"format": 99}).encode()
    for content, kind, said in [
        (b"{", DamagedError, rf"^{NAME} at c0ffeec0ffee is damaged: {NAME}/bank\.json: not the manifest"),
        (newer, IncompatibleError, rf"^bank {NAME} has format 99"),
    ]:
        sent["bank.json"] = content
        before = dict(sent)
        with pytest.raises(kind, match=said) as caught:
            api.push(bank, NAME)
        assert caught.value.hint
        assert caught.value.unchanged == "nothing was sent"
        assert sent == before


def test_only_what_is_fetched_needs_room(
    hub: FakeHub, sent: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("lorabank.bank.objects.store.check_space", lambda folder, size: asked.append(size))
    sent["model.gguf"] = b"x" * 2**20
    api.pull(tmp_path / "theirs", NAME)
    assert asked[0] == sum(len(data) for path, data in sent.items() if path.startswith(("bank.", "adapters", "blobs")))


def flip(sent: dict[str, bytes], path: str) -> None:
    data = bytearray(sent[path])
    data[len(data) // 2] ^= 1
    sent[path] = bytes(data)


def damages(sent: dict[str, bytes]) -> Iterator[Callable[[], object]]:
    adapter = next(path for path in sent if path.endswith("adapter_model.safetensors"))
    blob = next(path for path in sent if path.startswith("blobs/"))
    yield lambda: flip(sent, adapter)
    yield lambda: sent.pop(adapter)
    yield lambda: flip(sent, blob)
    yield lambda: sent.pop("bank.db")
    yield lambda: sent.update({"bank.db": b"SQLite format 3\0" + b"x" * 4096})


def test_what_is_damaged_is_not_pulled(hub: FakeHub, sent: dict[str, bytes], tmp_path: Path) -> None:
    whole, before = dict(sent), sorted(tmp_path.iterdir())
    for damage in damages(sent):
        damage()
        with pytest.raises(DamagedError, match=f"^{NAME} at c0ffeec0ffee is damaged: ") as caught:
            api.pull(tmp_path / "deep/deeper/theirs", NAME)
        assert str(tmp_path) not in caught.value.message
        assert "\n" not in caught.value.message
        assert sorted(tmp_path.iterdir()) == before
        sent.clear()
        sent.update(whole)


def test_a_strangers_files_stay_outside(hub: FakeHub, sent: dict[str, bytes], tmp_path: Path) -> None:
    sent |= {"adapters/" + "0" * 64 + "/run.py": b"evil", "lock": b"", "work/x": b"1", "blobs/00/notes": b"1"}
    api.pull(tmp_path / "theirs", NAME)
    assert not [path for path in (tmp_path / "theirs").rglob("*") if path.name in ("run.py", "x", "notes")]


def test_what_is_not_a_bank_is_not_pulled(bank: Path, hub: FakeHub, tmp_path: Path) -> None:
    api.push(bank, "me/first", task="first")
    hub.files["me/other"], hub.private["me/other"] = {"README.md": b"hi"}, True
    with pytest.raises(IncompatibleError, match="me/first holds an adapter, not a bank") as caught:
        api.pull(tmp_path / "theirs", "me/first")
    assert caught.value.commands == (("import", "me/first", "--task", "NAME", "--data", "FILE"),)
    with pytest.raises(IncompatibleError, match="me/other does not hold a bank of lorabank"):
        api.pull(tmp_path / "theirs", "me/other")
    with pytest.raises(NotFoundError, match="there is no repository me/none on the hub that your token may read"):
        api.pull(tmp_path / "theirs", "me/none")
    with pytest.raises(ConfigError, match=r"'\.\./x' is not the name of a repository") as caught:
        api.pull(tmp_path / "theirs", "../x")
    assert caught.value.unchanged == f"{tmp_path / 'theirs'} was not made"
    with pytest.raises(ExistsError, match="bank is not empty"):
        api.pull(bank, NAME)
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    ("failing", "kind", "said"),
    [
        (answer(HfHubHTTPError, 403), MissingExtraError, f"your token of the hub may not do this with {NAME}: 403"),
        (answer(HfHubHTTPError, 500), StorageError, f"^{NAME}: 500 from the hub$"),
        (RuntimeError("xet broke\nat line 3"), StorageError, f"^{NAME}: xet broke$"),
        (answer(HfHubHTTPError, 422), DataError, f"^{NAME}: the hub refuses it: 422 from the hub more$"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    bank: Path, hub: FakeHub, tmp_path: Path, failing: Exception, kind: type[LorabankError], said: str
) -> None:
    hub.failing = failing
    for call in (lambda: api.push(bank, NAME), lambda: api.pull(tmp_path / "theirs", NAME)):
        with pytest.raises(kind, match=said) as caught:
            call()
        assert (caught.value.hint == "try again") is (kind is StorageError)
    assert not (tmp_path / "theirs").exists()


def test_a_card_that_the_hub_refuses_is_named_with_what_it_says(
    bank: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError('Invalid metadata in README.md.\n- "license" must be one of [apache-2.0, mit]')

    monkeypatch.setattr(hub, "create_commit", refuse)
    with pytest.raises(DataError, match=r'Invalid metadata in README\.md\. - "license" must be one of') as caught:
        api.push(bank, NAME, license="free")
    assert "--license" in str(caught.value.hint)
    assert "\n" not in caught.value.message


def test_without_a_token_or_a_network_nothing_is_sent(
    bank: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as alone:
        alone.setattr(huggingface_hub, "get_token", lambda: None)
        assert main(["-b", str(bank), "push", NAME]) == 7
        assert "error: there is no token of the Hugging Face hub\n  nothing was sent\n" in capsys.readouterr().err
    with monkeypatch.context() as alone:
        alone.setattr("lorabank.models.bases.hub.hub_reachable", lambda: False)
        assert main(["-b", str(bank), "push", NAME]) == 3
        assert f"error: {NAME}: {constants.ENDPOINT} does not answer\n" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["-b", str(bank), "push", NAME]) == 3
    assert f"error: {NAME}: HF_HUB_OFFLINE is set" in capsys.readouterr().err
    assert hub.files == {}


def test_a_damaged_bank_is_not_sent(bank: Path, hub: FakeHub) -> None:
    weights = next(bank.glob("adapters/*/adapter_model.safetensors"))
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedError, match="adapter"):
        api.push(bank, NAME)
    assert hub.asked == 0


def test_the_commands_say_what_was_done(
    bank: Path, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-b", str(bank), "push", NAME, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"would send bank to {NAME}\n")
    assert "bank.db" in shown
    assert main(["-b", str(bank), "push", "me/first", "--task", "first", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["what"] == "task first"
    assert main(["-b", str(bank), "push", NAME]) == 0
    shutil.rmtree(bank)
    assert main(["-b", str(bank), "pull", NAME]) == 0
    assert f"fetched {NAME} into {bank}\n" in capsys.readouterr().out
    assert [task.name for task in Bank.open(bank).snapshot().tasks] == ["first", "second"]
