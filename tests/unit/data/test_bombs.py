"""Small files that stand for gigabytes: each is refused as data, with little memory, whatever the format."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorabank.core.errors import DamagedError
from lorabank.core.limits import MAX_LINE
from lorabank.data.formats.parquet import cell_sizes, from_parquet
from lorabank.data.loading import read_rows

ROWS = 400_000
LABELS = pa.array(np.arange(ROWS) % 2)
MIB = 1024**2


def repeated(text: str, count: int = ROWS) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, "int32")), pa.array([text]))


def in_one_list(values: pa.Array) -> pa.Array:
    """One row: a conversation of as many messages as there are values."""
    messages = pa.StructArray.from_arrays([values], ["content"])
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), messages)


def parquet(path: Path, **columns: object) -> None:
    pq.write_table(pa.table(columns), path, compression="zstd")


def same_text(path: Path) -> None:
    parquet(path, text=repeated("a" * 100_000), label=LABELS)


def same_label(path: Path) -> None:
    parquet(path, text=repeated("a"), label=repeated("b" * 300_000))


def one_cell(path: Path) -> None:
    parquet(path, text=["a" * 20 * MIB], label=[0])


def plain_pages(path: Path) -> None:
    """Plain pages that unpack to more than all cells may take."""
    texts = pa.array(["a" * 1000]).take(pa.array(np.zeros(150_000, "int32")))
    pq.write_table(
        pa.table({"text": texts, "label": LABELS[:150_000]}), path, compression="zstd", use_dictionary=False
    )


def shared_prefixes(path: Path) -> None:
    """Each text is the one before it: a page holds their common beginning once."""
    table = pa.table({"text": pa.array(["a" * 100_000] * 2000), "label": LABELS[:2000]})
    encodings = {"text": "DELTA_BYTE_ARRAY"}
    pq.write_table(table, path, use_dictionary=False, column_encoding=encodings)


def same_message(path: Path) -> None:
    parquet(path, messages=in_one_list(pa.array(["a" * 100_000]).take(pa.array(np.zeros(1000, "int32")))))


def same_message_in_a_dictionary(path: Path) -> None:
    parquet(path, messages=in_one_list(repeated("a" * 100_000)))


def many_missing_messages(path: Path) -> None:
    parquet(path, messages=in_one_list(pa.nulls(1_000_000, pa.string())))


def wide_missing_values(path: Path) -> None:
    """A missing value of a fixed size takes that size in memory."""
    parquet(path, messages=in_one_list(pa.nulls(1000, pa.binary(10_000))))


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"text,label\n")
        file.truncate(60 * 1024**3)


def one_quoted_cell(path: Path) -> None:
    path.write_bytes(b'text,label\n"' + b"line\n" * (MIB // 2) + b'",1\n')


def one_entry(path: Path) -> None:
    path.write_bytes(b'[{"text": "a", "label": [' + b"{}," * (4 * MIB) + b"{}]}]")


def one_string(path: Path) -> None:
    path.write_bytes(b'[{"text": "' + b"a" * (4 * MIB) + b'", "label": 1}]')


def deep(path: Path) -> None:
    path.write_bytes(b'[{"text": ' + b"[" * 900_000)


BOMBS: dict[str, tuple[str, Callable[[Path], None]]] = {
    **{
        maker.__name__: (".parquet", maker)
        for maker in (
            same_text, same_label, one_cell, plain_pages, shared_prefixes, same_message, same_message_in_a_dictionary,
            many_missing_messages, wide_missing_values,
        )
    },
    "sparse csv": (".csv", sparse),
    "sparse jsonl": (".jsonl", sparse),
    "sparse json": (".json", sparse),
    "sparse parquet": (".parquet", sparse),
    **{maker.__name__: (".json", maker) for maker in (one_entry, one_string, deep)},
    "one_quoted_cell": (".csv", one_quoted_cell),
    "one_string as a line": (".jsonl", one_string),
    "deep as a line": (".jsonl", deep),
}  # fmt: skip

READ_ALL = """
import resource, sys
import numpy, pyarrow.compute, pyarrow.parquet
from lorabank.core.config import TrainConfig
from lorabank.core.errors import DataError
from lorabank.data.formats import base, parquet_pages
from lorabank.data.loading import load_task_data, read_rows

def memory(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

base.MAX_DECODED = parquet_pages.MAX_DECODED = 128 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30,) * 2)
for path in sys.argv[1:]:
    before = memory("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here
    try:
        if "message" in path or "missing" in path:
            load_task_data(TrainConfig(data=path), labelled=False, render_chat=str)
        else:
            read_rows(path, text_column="text", label_column="label")
        print("was read:", path)
    except DataError as error:
        assert error.message.isprintable() and len(error.message) < 400, error.message
    except MemoryError:
        print("out of memory:", path)
    if memory("VmHWM") - before > 350:
        print("took", round(memory("VmHWM") - before), "MiB:", path)
"""


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bombs")
    paths = []
    for name, (suffix, maker) in BOMBS.items():
        paths.append(folder / f"{name}{suffix}")
        maker(paths[-1])
    return paths


def test_every_bomb_is_refused_with_little_memory(bombs: list[Path]) -> None:
    assert all(path.stat().st_blocks * 512 < 20 * MIB for path in bombs), "a bomb is small"
    command = [sys.executable, "-c", READ_ALL, *map(str, bombs)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, ""), run.stderr[-2000:]


def test_a_bomb_in_a_bank_is_damage(tmp_path: Path) -> None:
    for columns in ({"text": repeated("a" * 2 * MIB)}, {"text": ["a"], "label": ["b"], "more": ["c"]}):
        parquet(tmp_path / "blob", **columns)
        with pytest.raises(DamagedError, match="stored rows"):
            from_parquet((tmp_path / "blob").read_bytes())


@pytest.mark.parametrize("cell", [b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", None])
def test_what_is_no_text_in_a_bank_is_damage(tmp_path: Path, cell: bytes | None) -> None:
    texts = pa.array([b"good", cell], pa.binary()).view(pa.string())
    parquet(tmp_path / "blob", text=texts)
    with pytest.raises(DamagedError, match="stored rows"):
        from_parquet((tmp_path / "blob").read_bytes())


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.string_view()])
def test_cells_are_measured_as_python_would(type_: pa.DataType) -> None:
    texts = ["", "a", None, "é" * 10, "😀"]
    lengths = [len((text or "").encode()) for text in texts]
    array = pa.array(texts, type_)
    assert list(cell_sizes(array)) == lengths
    assert list(cell_sizes(array[1:4])) == lengths[1:4]
    if type_ != pa.string_view():
        assert list(cell_sizes(array.dictionary_encode()[1:])) == lengths[1:]
    nested = pa.array([["a"], [], None, ["bc", "def"]], pa.list_(pa.string()))
    assert list(cell_sizes(nested[1:])) == [3, 3, 3 + 2 * 3 + 5]


def test_conversations_are_read_whatever_their_pages(tmp_path: Path) -> None:
    rows = [[{"role": "user", "content": f"{index} " * (index % 50)}] * (index % 4) for index in range(3000)]
    path = tmp_path / "data.parquet"
    for options in ({"dictionary_pagesize_limit": 5000}, {"use_dictionary": False}, {"data_page_version": "2.0"}):
        table = pa.table({"messages": rows, "plain": ["x"] * len(rows)})
        pq.write_table(table, path, row_group_size=700, data_page_size=3000, **options)
        from lorabank.data.formats.parquet import Parquet

        assert [row[0] for row in Parquet(path).read(["messages"]).rows] == rows


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd", "brotli", "lz4"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_every_codec_and_page_is_read(tmp_path: Path, codec: str, dictionary: bool) -> None:
    texts = [f"text {index} " * (index % 40 + 1) for index in range(5000)]
    path = tmp_path / "data.parquet"
    table = pa.table({"text": texts, "label": [index % 3 for index in range(5000)]})
    pq.write_table(table, path, compression=codec, use_dictionary=dictionary, row_group_size=1300, data_page_size=900)
    rows = read_rows(path, text_column="text", label_column="label")
    assert rows.texts == tuple(texts)
    assert rows.lines == tuple(range(1, 5001))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_a_row_has_one_limit_in_every_format(tmp_path: Path, suffix: str) -> None:
    """A CSV cell of 200,000 characters is read as that of any other format is."""
    path = tmp_path / f"data{suffix}"
    for size, fits in ((200_000, True), (MAX_LINE - 100, True), (MAX_LINE + 1, False)):
        text = "a" * size
        if suffix == ".parquet":
            parquet(path, text=[text, "b"], label=[0, 1])
        elif suffix == ".csv":
            path.write_text(f"text,label\n{text},0\nb,1\n")
        else:
            row = f'{{"text": "{text}", "label": 0}}'
            path.write_text(f"[{row}]" if suffix == ".json" else f"{row}\n")
        if fits:
            assert read_rows(path, text_column="text", label_column="label").texts[0] == text
        else:
            with pytest.raises(Exception, match=f"{MAX_LINE:,}") as caught:
                read_rows(path, text_column="text", label_column="label")
            assert "1" in str(caught.value)
