"""The project's own promises: what it declares, what it forbids itself, what its documents say."""

from __future__ import annotations

import ast
import json
import re
import socket
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lorabank
from lorabank.core import shelves

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "lorabank", ROOT / "cli/lorabank_cli", ROOT / "migrations/lorabank_migrations")
SOURCES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DEMO_DATA = ROOT / "lorabank/demo/data"

# Import name of a distribution where the two differ.
IMPORT_NAMES = {
    "charset-normalizer": "charset_normalizer",
    "huggingface-hub": "huggingface_hub",
    "prometheus-client": "prometheus_client",
    "rouge-score": "rouge_score",
}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(*extras: str) -> list[Requirement]:
    lists = [project()["dependencies"], *(project()["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(line) for lines in lists for line in lines]


def calls(tree: ast.Module) -> list[str]:
    return [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_tested_versions_fit_the_declared_ranges() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for requirement in requirements("browser", "demo", "dev", "docs"):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)
    assert pins["torch"] == "2.13.0", "a local part such as +cpu would forbid every other build"


def test_ci_installs_the_tested_versions_by_their_hashes() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line for line in lines if line and not line.startswith(("#", "torch=="))}
    locked = {}
    for line in (ROOT / "requirements-ci.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            pin, _, digest = line.partition(" --hash=sha256:")
            assert re.fullmatch("[0-9a-f]{64}", digest), line
            locked[pin] = digest
    assert set(locked) == pins, "stale; run: .ci/lock"
    assert len(set(locked.values())) == len(pins)


def test_every_import_is_declared_and_every_dependency_imported() -> None:
    imported = set()
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
    imported -= sys.stdlib_module_names | {"lorabank", "lorabank_cli", "lorabank_migrations"}
    imported -= {"vllm"}  # which calls the plug-in, and so is there
    declared = {IMPORT_NAMES.get(requirement.name, requirement.name) for requirement in requirements("serve")}
    assert imported <= declared
    # transformers.Trainer imports accelerate on our behalf.
    assert declared <= imported | {"accelerate"}


def test_importing_the_package_costs_the_standard_library_alone() -> None:
    code = "import sys; before = set(sys.modules); import lorabank; print(*(set(sys.modules) - before))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    ours = {name.split(".")[0] for name in output.split()}
    assert ours <= sys.stdlib_module_names | {"lorabank"}


def test_public_names_resolve() -> None:
    for name in lorabank.__all__:
        assert getattr(lorabank, name) is not None
        assert name in dir(lorabank)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lorabank.nonsense  # noqa: B018


def test_tests_run_without_a_network() -> None:
    for address in (("127.0.0.1", 9), ("example.org", 443)):
        with pytest.raises(ConnectionError, match="tests run without a network"):
            socket.create_connection(address, timeout=1)


def test_the_version_is_in_the_changelog() -> None:
    assert re.search(rf"^## \[?{re.escape(lorabank.__version__)}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)


def broken_rules(path: Path) -> Iterator[str]:
    """The house rules that a source file breaks."""
    tree, text = parsed(path), path.read_text(encoding="utf-8")
    if text.count("\n") > 400:
        yield "longer than 400 lines: split it"
    if path.name == "utils.py":
        yield "a name that says nothing"
    for page in re.findall(r"docs/[\w/-]+\.md", text):
        if not (ROOT / page).is_file():
            yield f"names {page}, which is not there"
    yield from re.findall(r"\b(?:TODO|FIXME|XXX)\b|NotImplementedError", text)
    used = set(calls(tree))
    if path.is_relative_to(ROOT / "lorabank") and "print" in used:
        yield "the library never prints"
    # Nothing stored or imported is ever unpickled or run (SECURITY.md).
    never = {"eval", "exec", "pickle.load", "pickle.loads", "torch.load", "joblib.load", "yaml.load", "numpy.load"}
    yield from never & used
    yield from re.findall(r"trust_remote_code\s*=\s*True|allow_pickle\s*=\s*True|AutoPeftModel", text)


def test_source_keeps_the_house_rules() -> None:
    assert len(SOURCES) > 100
    assert [f"{path.relative_to(ROOT)}: {rule}" for path in SOURCES for rule in broken_rules(path)] == []


def test_no_folder_is_too_full_to_be_looked_over() -> None:
    flat = {ROOT / "cli/lorabank_cli/commands", ROOT / "lorabank/training/variants"}  # one file for each of them
    counts = Counter(path.parent for path in SOURCES if path.name != "__init__.py")
    assert {str(folder): count for folder, count in counts.items() if count > 16 and folder not in flat} == {}


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("long.py", "x = 1\n" * 401, "longer than 400 lines: split it"),
        ("utils.py", "x = 1\n", "a name that says nothing"),
        ("a.py", "# see docs/nowhere.md\n", "names docs/nowhere.md, which is not there"),
        ("a.py", "# TO" + "DO\n", "TO" + "DO"),
        ("a.py", "import torch\ntorch.load('x')\n", "torch.load"),
        ("a.py", "load(x, trust_remote_code = True)\n", "trust_remote_code = True"),
    ],
)
def test_a_broken_rule_is_seen(tmp_path: Path, name: str, text: str, rule: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert list(broken_rules(tmp_path / name)) == [rule]


def test_links_of_the_documents_lead_somewhere() -> None:
    broken = []
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://", "mailto:")) and not (document.parent / target).exists():
                broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert broken == []


def test_a_method_goes_where_those_of_its_shelf_lie() -> None:
    text = " ".join((ROOT / "docs/extending.md").read_text(encoding="utf-8").split())
    said = re.findall(r"`(lorabank/[a-z/]+)/NAME\.py`[^.]*? and a line in `([A-Z_]+)`", text)
    assert len(said) >= 8
    for folder, shelf in said:
        homes = {path.partition(":")[0].rpartition(".")[0] for path in getattr(shelves, shelf).table.values()}
        home = folder.replace("/", ".")
        assert {other for other in homes if other != home and not other.startswith(f"{home}.")} == set(), shelf


def test_every_page_is_on_the_map() -> None:
    maps = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("index.md", "methods.md", "commands.md")]
    for page in (ROOT / "docs").rglob("*.md"):
        if page.name != "index.md":
            assert any(f"({page.relative_to(ROOT / 'docs')})" in text for text in maps), page


@pytest.mark.parametrize(("page", "least"), [("docs/reliability.md", 200), ("SECURITY.md", 8)])
def test_every_promise_names_tests_that_exist(page: str, least: int) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / page).read_text(encoding="utf-8"))
    assert len(named) >= least
    for file, test in named:
        assert (ROOT / file).is_file(), file
        functions = {n.name for n in ast.walk(parsed(ROOT / file)) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        assert not test or test in functions, f"{file}::{test}"


def test_the_readme_holds_the_two_commands_that_ci_runs() -> None:
    lines = [line.strip() for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()]
    assert lines.count('pip install -c constraints.txt -e ".[demo]" && lorabank demo') == 1
    assert lines.count('pip install -c constraints.txt -e ".[dev]" && pytest') == 1


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("sentiment", {"negative", "positive"}),
        ("spam", {"ham", "spam"}),
        ("products", {"negative", "positive"}),
        ("tweets", {"negative", "neutral", "positive"}),
    ],
)
def test_demo_data_is_whole_and_honest(task: str, labels: set[str]) -> None:
    splits = {}
    for split, rows in (("train", 480), ("test", 240)):
        lines = (DEMO_DATA / task / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
        objects = [json.loads(line) for line in lines if line]
        assert len(objects) == rows
        assert {row["label"] for row in objects} == labels
        splits[split] = {row["text"] for row in objects}
    assert not splits["train"] & splits["test"]
    assert task in (DEMO_DATA / "NOTICE").read_text(encoding="utf-8")
