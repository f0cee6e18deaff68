"""Files as people have them: what stands between cells, encodings, packed files, capitals in headers."""

from __future__ import annotations

import csv
import gzip
import io
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError, DataError
from lorabank.data.formats import dialects, encodings
from lorabank.data.formats.delimited import Csv
from lorabank.data.formats.dialects import find_dialect
from lorabank.data.formats.readers import Reading, open_reader
from lorabank.data.loading import TaskData, load_task_data, read_rows

ROWS = [(f"Ticket {i}: Gerät läßt sich nicht öffnen, bitte prüfen", ("Versand", "Zahlung")[i % 2]) for i in range(12)]
EXCEL = "Betreff;Kategorie\r\n" + "".join(f'"{text}";{label}\r\n' for text, label in ROWS)
COLUMNS = {"text_column": "Betreff", "label_column": "Kategorie"}


def load(folder: Path, name: str, content: bytes, **settings: object) -> TaskData:
    (folder / name).write_bytes(content)
    return load_task_data(TrainConfig(data=str(folder / name), **settings))  # type: ignore[arg-type]


def all_rows(data: TaskData) -> set[tuple[str, str]]:
    return {pair for rows in (data.train, data.eval) for pair in zip(rows.texts, rows.labels, strict=True)}


# ------------------------------------------------------------------------------------------------------- delimiters


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("german.csv", EXCEL.encode(), "CSV separated by ';'"),
        ("marked.csv", EXCEL.encode("utf-8-sig"), "CSV separated by ';'"),
        ("declared.csv", b"sep=;\r\n" + EXCEL.encode(), "CSV separated by ';'"),
        ("tabs.tsv", EXCEL.replace(";", "\t").encode(), None),
        ("tabs.csv", EXCEL.replace(";", "\t").encode(), "CSV separated by tabs"),
        ("bars.csv", EXCEL.replace(";", "|").encode(), "CSV separated by '|'"),
        ("semicolons.tsv", EXCEL.encode(), "CSV separated by ';'"),
        ("unicode text.txt", EXCEL.replace(";", "\t").encode("utf-16"), "CSV separated by tabs, encoding utf-16"),
        ("big end.csv", b"\xfe\xff" + EXCEL.encode("utf-16-be"), "CSV separated by ';', encoding utf-16"),
        ("wide.csv", EXCEL.encode("utf-32"), "CSV separated by ';', encoding utf-32"),
        ("plain.csv", EXCEL.replace(";", ",").encode(), None),
        ("packed.csv.gz", gzip.compress(EXCEL.encode(), mtime=0), "CSV separated by ';'"),
        ("packed.tsv.gz", gzip.compress(EXCEL.replace(";", "\t").encode("utf-16"), mtime=0), "encoding utf-16"),
    ],
)
def test_what_excel_and_other_programs_write_is_read_and_said(
    tmp_path: Path, name: str, content: bytes, said: str | None
) -> None:
    data = load(tmp_path, name, content, **COLUMNS)
    assert all_rows(data) == set(ROWS)
    assert data.notes == ((f"{str(tmp_path / name)!r} is read as {said}",) if said else ())


def write_with_python(rows: list[list[str]], delimiter: str, quoting: int, end: str) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(rows)  # type: ignore[arg-type]
    return file.getvalue()


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=20)


@given(
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=8),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_every_dialect_that_python_writes_is_read(
    tmp_path: Path, rows: list[tuple[str, str, str]], delimiter: str, quoting: int, end: str, encoding: str
) -> None:
    path = tmp_path / "data.csv"
    text = write_with_python([["id", "text", "label"], *map(list, rows)], delimiter, quoting, end)
    path.write_bytes(text.encode(encoding))
    found = Csv()(path).read(("id", "text", "label"))
    assert found.rows == rows
    assert not found.bad.count


def test_a_comma_in_the_cells_of_a_semicolon_file_decides_nothing(tmp_path: Path) -> None:
    content = "id;text;label\n" + "".join(f"{i};one, two, {i};{'ab'[i % 2]}\n" for i in range(8))
    assert {text for text, _ in all_rows(load(tmp_path, "x.csv", content.encode()))} == {
        f"one, two, {i}" for i in range(8)
    }


@pytest.mark.parametrize(
    ("usual", "content", "delimiter"),
    [
        (",", "text;kind, as sold\n" + "a;b\n" * 3, ";"),  # a comma in the header, where no row has one
        (",", "id|text;more|label\n" + "1|one;two|a\n" * 3, "|"),  # both fit every row: what makes most columns
        ("\t", "text\tlabel,more\na\tb,c\nplain\n", "\t"),  # both fit equally badly: what the name says
        (",", "text\nno other column\n", ","),
    ],
)
def test_header_and_rows_decide_together(usual: str, content: str, delimiter: str) -> None:
    assert find_dialect(io.BytesIO(content.encode()), None, usual=usual).delimiter == delimiter


def test_a_row_that_the_sample_cuts_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"x;text,label\n" + b"a;b,c\n" * 4
    monkeypatch.setattr(dialects, "_SAMPLE", len(content) - len(",c\n"))
    assert find_dialect(io.BytesIO(content), None).delimiter == ","


def test_a_first_line_that_names_the_delimiter_is_no_header_whatever_the_user_says(tmp_path: Path) -> None:
    data = load(tmp_path, "x.csv", b"sep=;\r\n" + EXCEL.encode(), set=("delimiter=semicolon",), **COLUMNS)
    assert all_rows(data) == set(ROWS)


def test_the_users_delimiter_comes_before_what_is_found(tmp_path: Path) -> None:
    content = b"text:label\n" + b"".join(b"t%d:%s\n" % (i, b"ab"[i % 2 :][:1]) for i in range(8))
    assert len(all_rows(load(tmp_path, "x.csv", content, set=("delimiter=:",)))) == 8
    with pytest.raises(DataError, match=r"its columns are 'Betreff;Kategorie'") as caught:
        load(tmp_path, "y.csv", EXCEL.encode(), set=("delimiter=comma",), **COLUMNS)
    assert "--set delimiter=" in (caught.value.hint or "")


@pytest.mark.parametrize("given", ["", "semicoln", ";;", "a", '"', "\n", " "])
def test_what_cannot_stand_between_cells_is_refused(tmp_path: Path, given: str) -> None:
    with pytest.raises(ConfigError, match="delimiter"):
        load(tmp_path, "x.csv", b"text,label\na,b\n", set=(f"delimiter={given}",))


def test_a_text_file_that_is_no_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prose\.txt.*does not name columns"):
        load(tmp_path, "prose.txt", b"It was a dark night.\nIt rained.\n")


def test_a_cell_may_be_as_large_as_a_row(tmp_path: Path) -> None:
    long = "x" * 400_000
    content = f'text,label\n"{long}\n{long}",a\nshort,b\nother,b\nmore,a\n'
    assert f"{long}\n{long}" in {text for text, _ in all_rows(load(tmp_path, "x.csv", content.encode()))}


# -------------------------------------------------------------------------------------------------------- encodings

TEXTS = {
    "cp1252": "text,label\nJ'ai été déçu par la qualité du café à l'hôtel,négatif\nTrès bon séjour – merci,positif\n",
    "cp1250": "text,label\nGdzie jest moja przesyłka? Czekam już tydzień,dostawa\nŚwietna obsługa,pochwała\n",
    "cp1251": "text,label\nГде мой заказ? Он не пришёл вовремя,доставка\nВсё прекрасно и быстро,похвала\n",  # noqa: RUF001
    "gb18030": "text,label\n痛风怎么治疗?我的关节很疼,医疗\n今天的天气真好,生活\n",
    "shift_jis": "text,label\n注文した商品がまだ届きません,配送\nとても良いサービスでした,感想\n",
    "utf-16-le": "text,label\nGerät läßt sich nicht öffnen,Versand\nÜberweisung fehlt,Zahlung\n",
}


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".jsonl", ".json"])
@pytest.mark.parametrize("encoding", TEXTS)
def test_the_likely_encoding_is_named_and_the_option_reads_the_file(
    tmp_path: Path, encoding: str, suffix: str
) -> None:
    import json

    cells = [line.rsplit(",", 1) for line in TEXTS[encoding].splitlines()[1:]] * 4
    objects = [{"text": f"{text} {i}", "label": label} for i, (text, label) in enumerate(cells)]
    lines = [json.dumps(one, ensure_ascii=False) for one in objects]
    text = {
        ".jsonl": "\n".join(lines),
        ".json": "[" + ",\n".join(lines) + "]",
    }.get(suffix, "text,label\n" + "".join(f'"{one["text"]}",{one["label"]}\n' for one in objects))
    content = text.encode(encoding)
    content = gzip.compress(content) if suffix.endswith(".gz") else content
    with pytest.raises(DataError) as caught:
        load(tmp_path, f"data{suffix}", content)
    assert "line " in caught.value.message
    assert caught.value.hint is not None
    option = caught.value.hint.rpartition("--set encoding=")[2]
    assert option == encoding
    data = load(tmp_path, f"data{suffix}", content, set=(f"encoding={option}",))
    assert all_rows(data) == {(one["text"], one["label"]) for one in objects}
    assert f"encoding {option}" in data.notes[0]


def test_one_damaged_line_among_others_is_a_bad_row(tmp_path: Path) -> None:
    lines = [f"größer {i},{'ab'[i % 2]}".encode() for i in range(12)]
    lines[4] = b"gr\xf6\xdfer,a"
    content = b"text,label\n" + b"\n".join(lines)
    with pytest.raises(DataError, match="line 6, byte 3: not UTF-8, unlike other lines of the file"):
        load(tmp_path, "x.csv", content)
    assert len(all_rows(load(tmp_path, "x.csv", content, skip_bad=True))) == 11


def test_one_line_that_happens_to_be_utf_8_makes_no_utf_8_of_the_file(tmp_path: Path) -> None:
    content = TEXTS["cp1252"].encode("cp1252") * 2 + "schön,positif\n".encode()
    with pytest.raises(DataError, match="line 2, byte 6: not UTF-8") as caught:
        load(tmp_path, "x.csv", content, skip_bad=True)
    assert re.fullmatch(r"it is probably (cp125\d): add --set encoding=\1", str(caught.value.hint))


@pytest.mark.parametrize("shift", range(3))
def test_a_long_line_is_judged_whole(tmp_path: Path, shift: int) -> None:
    """Its parts end within a character, which is three bytes long here."""
    long = "x" * shift + "痛" * 60_000
    content = f"text,label\n{long}1,a\n{long}2,b\n{long}3,a\n{long}4,b\n".encode() + b"gr\xf6\xdfer,a\n"
    with pytest.raises(DataError, match="line 6, byte 3: not UTF-8, unlike other lines of the file"):
        load(tmp_path, "x.csv", content)
    assert len(all_rows(load(tmp_path, "x.csv", content, skip_bad=True))) == 4


def test_what_is_not_ascii_is_looked_for_behind_the_beginning(tmp_path: Path) -> None:
    head, _, rest = TEXTS["cp1252"].partition("\n")
    content = f"{head}\n".encode() + b"plain words,positif\n" * 4000 + rest.encode("cp1252")
    with pytest.raises(DataError, match="line 4002, byte 6: not UTF-8") as caught:
        load(tmp_path, "x.csv", content)
    assert caught.value.hint == "it is probably cp1252: add --set encoding=cp1252"


def test_the_encoding_that_failed_is_not_proposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_SAMPLE", 512)
    content = TEXTS["cp1252"].encode("cp1252") * 8 + b"\x81,positif\n"
    with pytest.raises(DataError, match="not cp1252") as caught:
        load(tmp_path, "x.csv", content, set=("encoding=cp1252",))
    assert "cp1252" not in str(caught.value.hint)


NO_ENCODINGS = ["utf8x", "hex", "rot13", "idna", "unicode_escape", "zlib", "base64", "utf-7", "", "\0"]


@pytest.mark.parametrize("name", NO_ENCODINGS)
def test_what_is_no_encoding_of_text_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="encoding: unknown text encoding") as caught:
        load(tmp_path, "x.csv", b"text,label\na,b\n", set=(f"encoding={name}",))
    proposed = re.findall("Did you mean '(.*)'", str(caught.value))
    for other in proposed:  # what is proposed is accepted
        assert Csv(encoding=other)(tmp_path / "x.csv")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_an_encoding_that_needs_a_byte_order_mark_is_refused_without_it(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(DataError, match=f"line 1: not {encoding}"):
        load(tmp_path, "x.csv", b"text,label\n" + b"abc,d\n" * 6, set=(f"encoding={encoding}",))


def test_bytes_that_are_not_of_the_given_encoding_name_their_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: not ascii"):
        load(tmp_path, "x.csv", "text,label\na,b\nä,b\n".encode(), set=("encoding=ascii",))
    with pytest.raises(DataError, match=r"line 30002: not ascii"):  # far behind the first part that is decoded
        load(tmp_path, "x.csv", b"text,label\n" + b"plain,b\n" * 30_000 + "ä,b\n".encode(), set=("encoding=ascii",))


# ------------------------------------------------------------------------------------------------------ packed files


def test_a_packed_file_that_is_cut_or_no_packed_file_is_bad_data(tmp_path: Path) -> None:
    packed = gzip.compress(b"text,label\n" + b"some text,a\nother text,b\n" * 1000)
    for content in (packed[: len(packed) // 2], b"text,label\na,b\n"):
        with pytest.raises(DataError, match="not a complete gzip file"):
            load(tmp_path, "x.csv.gz", content)


def test_a_packed_bomb_is_refused_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorabank.data.formats import text_file as opening

    monkeypatch.setattr(opening, "MAX_UNPACKED", 100_000)
    with pytest.raises(DataError, match="unpacks to more than"):
        load(tmp_path, "x.jsonl.gz", gzip.compress(b'{"text": "a", "label": "b"}\n' * 10_000))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", gzip.compress(b"text,label\na,b\n" * 100, mtime=0), "must end in .gz"),
        ("x.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\xff" * 600, "old Excel workbook"),
        ("x.parquet.gz", b"x", "gunzip"),
        ("x.xls", b"x", "save it as .xlsx or .csv"),
        ("x.gz", b"x", "gunzip"),
    ],
)
def test_a_file_under_the_wrong_name_is_told_what_it_is(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, name, content)
    assert said in (caught.value.hint or "")


# ----------------------------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("header", ["Text,Label", " text, label ", "TEXT,label", "text,Label"])
def test_capitals_and_blanks_in_a_header_are_taken_and_said(tmp_path: Path, header: str) -> None:
    data = load(tmp_path, "x.csv", f"{header}\n".encode() + b"".join(b"t%d,%d\n" % (i, i % 2) for i in range(8)))
    assert len(all_rows(data)) == 8
    taken = [name for name in header.split(",") if name not in ("text", "label")]
    assert len(data.notes) == len(taken)
    assert all(any(repr(name) in note for note in data.notes) for name in taken)


def test_two_columns_that_differ_in_capitals_alone_are_not_guessed_between(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'text'; its columns are 'Text', 'TEXT'"):
        load(tmp_path, "x.csv", b"Text,TEXT,label\na,b,c\n")


def test_a_column_of_the_exact_name_comes_first(tmp_path: Path) -> None:
    content = b"Text,text,label\n" + b"".join(b"no,t%d,%d\n" % (i, i % 2) for i in range(8))
    data = load(tmp_path, "x.csv", content)
    assert data.notes == ()
    assert all(text.startswith("t") for text, _ in all_rows(data))


def test_texts_to_answer_are_read_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("Nr;Text\r\n1;schön\r\n2;gut\r\n".encode("cp1252"))
    rows = read_rows(
        tmp_path / "x.csv", text_column="text", label_column=None, reading=Reading(set=("encoding=cp1252",))
    )
    assert rows.texts == ("schön", "gut")
    assert len(rows.told) == 2
    assert open_reader(tmp_path / "x.csv", Reading(set=("encoding=cp1252",))).columns() == ("Nr", "Text")
