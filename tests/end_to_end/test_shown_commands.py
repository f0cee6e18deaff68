"""Every command that the help, the README and the documents show is run, in a folder that holds what it names.

The bases are tiny random models: this shows that each command works as it is written. That the answers are good is the
business of test_readme.py and test_demo.py, with real models.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import random
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet
import pytest
from lorabank_cli.docs import commands
from lorabank_cli.main import main

from lorabank import ComposeConfig, EvalConfig, InitConfig, TrainConfig, api
from lorabank.core.observer import SilentObserver

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
GUIDES = {ROOT / "docs/tutorial.md"}
"""Their commands build on each other: test_guides.py runs them in order."""
DOCUMENTS = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")} - GUIDES)
SEQUENCE = (ROOT / "docs/sequences.md").read_text(encoding="utf-8")
ELSEWHERE = {
    "demo": ".ci/run runs the demo whole, tests/end_to_end/test_demo.py looks at what it left",
    "sequence.html": "tests/unit/workflows/test_sequence_run.py writes the report of a sequence",
    "serve": "tests/contract/test_serving.py asks a server, and as docs/serving.md does",
    "ui": "tests/cli/test_ui.py starts it, and tests/contract/test_page.py asks its page",
    "--lm-eval": "tests/unit/workflows/asking/test_harness.py asks the harness",
    "--gguf-file": "tests/end_to_end/test_language_model.py converts the real file",
    "--enable-lora": "tests/unit/workflows/importing/test_import_loralib.py imports such a file on GPT-2",
    "push": "tests/unit/workflows/carrying/test_hub.py sends to a hub in memory",
    "pull": "tests/unit/workflows/carrying/test_hub.py fetches from it",
    "--as-lora": "tests/contract/test_tuners.py cuts such folders",
    "--merged": "tests/unit/workflows/carrying/test_export_whole.py loads such folders",
}
"""What is run by another test, and by which."""
QUICK = TrainConfig(epochs=1, batch_size=8, r=2, keep_samples=8, clusters_per_task=2, max_length=64, device="cpu")
COPY = "20300102T030405000000-0003.db"


def shown() -> Iterator[tuple[str, str]]:
    """Each command line once, without ``lorabank``, and the first place that shows it."""
    for path, command in commands():
        for example in getattr(command, "examples", ()):
            yield example, f"{path} --help"
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for language, block in re.findall(r"^ *```(console|bash)\n(.*?)^ *```$", text, re.M | re.S):
            prompt = r"^ *\$ " if language == "console" else r"^ *"
            for found in re.finditer(rf"{prompt}lorabank (\S(?:\"[^\"]*\"|'[^']*'|\\\n|[^\n\"'])*)", block, re.M):
                yield found[1].split("  #")[0].strip(), str(document.relative_to(ROOT))


SHOWN = dict(reversed([*shown()]))


def letters(path: Path, columns: tuple[str, str], labels: tuple[str, ...], count: int = 24) -> list[dict[str, str]]:
    """Rows of letters under two columns, written in the form of the file's ending."""
    chance = random.Random(path.name)
    rows = [
        {columns[0]: " ".join(chance.choices("abcdefgh", k=6)) + f" {i}", columns[1]: labels[i % len(labels)]}
        for i in range(count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def write_files(folder: Path) -> None:
    """The data files that the commands name, one form each."""
    both = ("text", "label")
    for name in ("s.jsonl", "sentiment.jsonl", "products.jsonl", "reviews/train.jsonl", "reviews/test.jsonl"):
        letters(folder / name, both, ("negative", "positive"))
    letters(folder / "messages.jsonl", both, ("ham", "spam"), count=200)
    for name in ("spam.jsonl", "spam.parquet", "spam-test.parquet"):
        letters(folder / name, both, ("ham", "spam"))
    letters(folder / "p.parquet", both, ("negative", "positive"))
    letters(folder / "reviews.parquet", ("text", "stars"), ("one", "five"))
    letters(folder / "held-out.parquet", ("text", "stars"), ("one", "five"))
    letters(folder / "topics.csv", ("body", "section"), ("sport", "trade"))
    (folder / "held-out.txt").write_text("a b c d\n\ne f g h\n", encoding="utf-8")
    for name in ("news.jsonl", "articles.jsonl"):
        letters(folder / name, both, ("sport", "trade"))
    rows = letters(folder / "spam.csv", ("body", "folder"), ("ham", "spam"))
    with open(folder / "spam.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["body", "folder", "kind"])
        writer.writerows([row["body"], row["folder"], row["folder"]] for row in rows)
    (folder / "texts.csv").write_text("body\na b c\nd e f\n", encoding="utf-8")
    for name in ("lines.txt", "prompts.txt"):
        (folder / name).write_text("a b c\nd e f\n", encoding="utf-8")
    letters(folder / "summaries.jsonl", ("prompt", "completion"), ("a", "b"))
    letters(folder / "medical.jsonl", ("instruction", "output"), ("a", "b"))
    letters(folder / "questions.jsonl", ("text", "id"), ("1", "2"), count=2)
    asked = letters(folder / "chats.jsonl", ("asked", "said"), ("yes", "no"))
    chats = [
        {"messages": [{"role": "user", "content": row["asked"]}, {"role": "assistant", "content": row["said"]}]}
        for row in asked
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats), encoding="utf-8")
    (block,) = re.findall(r"^```toml\n(name = .*?)^```$", SEQUENCE, re.M | re.S)
    changed = {
        'base = "sentence-transformers/all-MiniLM-L6-v2"': 'base = "./encoder"',
        "seeds = [0, 1, 2]": "seeds = [0]",
        ', ["spam", "topics", "reviews"]]': "]",
        '["seqlora", "olora", "olora-strong", "isolated", "joint"]': '["olora", "olora-strong", "isolated"]',
        "epochs = 3\n": "epochs = 1\nmax_length = 64\n",
    }
    for old, new in changed.items():
        assert block.count(old) == 1
        block = block.replace(old, new)
    (folder / "experiment.toml").write_text(block, encoding="utf-8")


class Stop(SilentObserver):
    """Ctrl-C after the second step, when the checkpoint of the first is there."""

    def advance(self, done: int, values: object) -> None:
        if done == 2:
            raise KeyboardInterrupt


def train(folder: Path, name: str, file: str, base: str, *, stop: bool = False, **columns: str) -> None:
    settings = {**QUICK.__dict__, "data": str(folder / file), "save_steps": 1} | columns
    observer = Stop() if stop else SilentObserver()
    api.add_task(
        folder / "bank", name, TrainConfig(**settings), init=InitConfig(base=str(folder / base)), observer=observer
    )


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory, save_base: Any, save_language_model: Any) -> dict[str, Path]:
    """Folders with every file, and no bank, a bank of an encoder, of a language model, or with interrupted tasks."""
    root = tmp_path_factory.mktemp("worlds")
    empty = root / "empty"
    write_files(empty)
    save_base(empty / "encoder")
    save_base(empty / "my-encoder")
    save_language_model(empty / "my-model")
    made = {"empty": empty}

    def world(name: str) -> Path:
        made[name] = Path(shutil.copytree(empty, root / name))
        return made[name]

    tasks = world("tasks")
    train(tasks, "sentiment", "sentiment.jsonl", "encoder")
    made["one task"] = Path(shutil.copytree(tasks, root / "one task"))
    train(tasks, "spam", "spam.jsonl", "encoder")
    api.export(tasks / "bank", "spam", tasks / "spam-adapter")
    shutil.copytree(tasks / "spam-adapter", made["one task"] / "spam-adapter")

    three = made["three tasks"] = Path(shutil.copytree(tasks, root / "three tasks"))
    train(three, "products", "products.jsonl", str(tasks / "encoder"))
    streamed = world("streamed")
    settings = TrainConfig(data=str(streamed / "messages.jsonl"))
    api.stream(streamed / "bank", settings, init=InitConfig(base=str(streamed / "encoder")))

    encoder = made["encoder"] = Path(shutil.copytree(tasks, root / "encoder"))
    for mode in ("prototype", "routed"):
        api.compose(encoder / "bank", ComposeConfig(mode=mode))
    api.evaluate(encoder / "bank", EvalConfig(forgetting_matrix=True, device="cpu"))
    api.change_tags(encoder / "bank", "spam", add=["mail", "production"])
    shutil.copytree(encoder / "bank", encoder / "team/bank")
    for copy in ("copy-of-bank", "other-disk/bank"):
        api.backup(encoder / "bank", encoder / copy)
    path = Path(api.backup(encoder / "bank", None).path)
    path.rename(path.with_name(COPY))

    language = world("language")
    for name in ("summaries", "agnews", "support", "medical"):
        train(language, name, "summaries.jsonl", "my-model")
    chats = made["chats"] = Path(shutil.copytree(language, root / "chats"))
    train(language, "chat", "chats.jsonl", "my-model")
    api.export(language / "bank", "chat", chats / "chat-adapter")
    for mode in ("prototype", "routed"):
        api.compose(language / "bank", ComposeConfig(mode=mode))

    stopped = world("stopped")
    train(stopped, "sentiment", "sentiment.jsonl", "encoder")
    with pytest.raises(KeyboardInterrupt):
        train(stopped, "spam", "spam.jsonl", "encoder", stop=True)
    resumed = world("resumed")
    with pytest.raises(KeyboardInterrupt):
        train(resumed, "reviews", "reviews.parquet", "encoder", stop=True, label_column="stars")
    return made


def world_of(words: list[str]) -> str:
    """The world in which a command finds what it names."""
    if words[0] == "stream":
        return "streamed" if "--resume" in words else "empty"
    if words[0] == "fold":
        return "three tasks"
    if "--resume" in words:
        return "resumed" if "reviews" in words else "stopped"
    if words[0] == "import":
        return "chats" if "chat" in words else "one task"
    if words[0] in ("init", "add-task") or words[:2] == ["sequence", "run"]:
        return "empty"
    if words[0] == "compose":
        return "tasks"
    return (
        "language"
        if words[0] in ("generate", "chat") or "--text" in words or {"chat", "agnews"} & {*words}
        else "encoder"
    )


@pytest.fixture
def hub(worlds: dict[str, Path]) -> Iterator[None]:
    """A hub cache that holds the names of the documents."""
    cache = Path(os.environ["HF_HOME"]) / "hub"
    held = {
        "distilbert/distilbert-base-uncased": "encoder",
        "HuggingFaceTB/SmolLM2-135M-Instruct": "my-model",
        "someone/spam-adapter": "spam-adapter",
    }
    folders = [cache / f"models--{name.replace('/', '--')}" for name in held]
    for folder, source in zip(folders, held.values(), strict=True):
        shutil.copytree(worlds["tasks"] / source, folder / "snapshots" / ("a" * 40))
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text("a" * 40, encoding="utf-8")
    yield
    for folder in folders:
        shutil.rmtree(folder)


def _tried(line: str) -> object:
    """``advise`` takes the time it is given; its own tests give it less."""
    return pytest.param(line, marks=pytest.mark.slow) if line.startswith("advise ") else line


@pytest.mark.parametrize("line", [_tried(line) for line in SHOWN])
def test_the_command_works_as_it_is_shown(
    line: str, worlds: dict[str, Path], hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts = list(lexer)
    words = list(itertools.takewhile(lambda word: word[:1] not in tuple("<>|&;") or word in ("-",), parts))
    for known, where in ELSEWHERE.items():
        if known in words:
            pytest.skip(where)
    name = world_of(words)
    folder = Path(shutil.copytree(worlds[name], tmp_path / "here"))
    if (folder / "copy-of-bank").exists():
        (folder / "copy-of-bank").rename(tmp_path / "copy-of-bank")
    monkeypatch.chdir(folder)
    base = "my-model" if {"news", "support", "medical"} & {*words} else "encoder"
    if words[0] in ("add-task", "stream") and "--resume" not in words:
        monkeypatch.setenv(f"LORABANK_{words[0].replace('-', '_').upper()}_BASE", base)
    monkeypatch.setenv("DATA", ".")
    text = Path(parts[parts.index("<") + 1]).read_text(encoding="utf-8") if "<" in parts else "y\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    monkeypatch.setattr("sys.stdin.isatty", lambda: "<" not in parts, raising=False)
    words = [word.replace("/mnt/other-disk", str(folder / "other-disk")) for word in words]
    code = main(words)
    said = capsys.readouterr()
    allowed = {0, 12} if "--gate" in words else {0}
    assert code in allowed, f"{SHOWN[line]}: lorabank {line}\n{said.err}"


def test_what_is_run_elsewhere_is_shown() -> None:
    """No exception outlives what it was for."""
    assert all(any(known in line.split() for line in SHOWN) for known in ELSEWHERE)
    assert len(SHOWN) > 60
    assert all(isinstance(command, click.Command) for _, command in commands())
