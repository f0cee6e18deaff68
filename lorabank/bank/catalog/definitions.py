"""The schema of a database, compared whole with the one that the migrations make.

``schemas/REVISION.sql`` holds what SQLite keeps of each revision: the texts of its tables and indexes. A test makes
them from the migrations (``python -m tests.migrations.schemas`` writes them). Types, constraints, conflict clauses,
expressions and conditions all stand in these texts, so a database whose texts are these has this schema and no other.
"""

from __future__ import annotations

import sqlite3
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from lorabank.core.commands import Command
from lorabank.core.errors import DamagedError, IncompatibleError
from lorabank.core.machine.packages import UPDATE

APPLICATION_ID = 0x4C6F5242
"""``LoRB``, in the header of ``bank.db``."""

REVISIONS = ("0001", "0002", "0003", "0004", "0005")
"""Schema revisions that this version knows, oldest first; the last is the head of the migrations."""

FOLDER = Path(__file__).with_name("schemas")

_STATISTICS = frozenset(
    ("CREATE TABLE sqlite_stat1(tbl,idx,stat)", "CREATE TABLE sqlite_stat4(tbl,idx,neq,nlt,ndlt,sample)")
)
"""What ANALYZE adds: it holds counts, which change no answer."""


class Definition(NamedTuple):
    """One entry of ``sqlite_master``: its kind, the table it belongs to, and its text."""

    kind: str
    table: str
    sql: str


def schema_revision(connection: sqlite3.Connection, database: Path) -> str:
    """The revision of a database, after its schema was compared with that revision's.

    Raises:
        DamagedError: It is not a database of lorabank, or it holds what does not belong there, or lacks something.
        IncompatibleError: A newer version wrote it.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise _foreign(database, "not a database of lorabank")
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    texts = {name: sql for _, name, _, sql in found}
    for kind, name, _, _ in found:
        if kind in ("trigger", "view"):
            raise _foreign(database, f"not a database of lorabank (it holds the trigger or view {_shown(name)})")
    if not same(texts.get("alembic_version"), defined(REVISIONS[-1])["alembic_version"].sql):
        raise _foreign(database, "not the tables of lorabank (it holds no schema revision)")
    revisions = connection.execute("SELECT version_num FROM alembic_version LIMIT 2").fetchall()
    if len(revisions) != 1:
        raise _foreign(database, "it holds no schema revision")
    revision = str(revisions[0][0])
    if revision not in REVISIONS:
        raise newer_schema(database, revision)
    roots = [1, *(root for (root,) in connection.execute("SELECT rootpage FROM sqlite_master"))]
    if len(set(roots)) < len(roots):  # what is written into one would overwrite another
        raise _foreign(database, "two of its tables or indexes are kept in the same page")
    if problem := _difference(found, defined(revision)):
        raise _foreign(database, f"not the tables of lorabank ({problem})")
    return revision


def read_revision(connection: sqlite3.Connection) -> str:
    """The revision of a database whose schema was compared."""
    return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def newer_schema(database: Path, revision: str) -> IncompatibleError:
    """The refusal of a database that a newer version wrote."""
    return IncompatibleError(
        f"{database} has schema {revision[:40]!r}, which this lorabank does not know (it knows up to "
        f"{REVISIONS[-1]}): a newer version wrote it",
        hint=UPDATE,
        unchanged="the bank was not changed",
    )


@cache
def defined(revision: str) -> dict[str, Definition]:
    """The tables and indexes of a known revision, by name."""
    return parsed((FOLDER / f"{revision}.sql").read_text(encoding="utf-8"))


def parsed(texts: str) -> dict[str, Definition]:
    """The definitions in a file of ``schemas``, by name."""
    return dict(_described(sql) for sql in texts.split(";\n") if sql)


def _described(sql: str) -> tuple[str, Definition]:
    words = sql.partition("(")[0].replace("UNIQUE", "").replace('"', "").split()
    kind, name, table = words[1].lower(), words[2], words[-1]  # CREATE TABLE name, CREATE INDEX name ON table
    return name, Definition(kind, table, sql)


def _difference(found: list[tuple[str, str, str, str | None]], expected: dict[str, Definition]) -> str | None:
    """What is other than expected, None when nothing is."""
    missing = dict(expected)
    for kind, name, table, sql in found:
        if sql is None:  # an index that a constraint brings, by SQLite's own name for it
            if kind != "index" or table not in expected or not str(name).startswith(f"sqlite_autoindex_{table}_"):
                return f"{_shown(name)} does not belong there"
        elif sql not in _STATISTICS:
            definition = missing.pop(name, None)
            if definition is None:
                return f"{_shown(name)} does not belong there"
            if (kind, table) != definition[:2] or not same(sql, definition.sql):
                return f"{_shown(name)} is another"
    return f"{min(missing)!r} is missing" if missing else None


def same(sql: object, expected: str) -> bool:
    """Whether two definitions say the same.

    Blanks, quotes around a plain name and the order of a table's constraints depend on the version of SQLAlchemy, and
    on whether a table was made or changed. Nothing else may differ, not even the case of a letter.
    """
    return sql == expected or (isinstance(sql, str) and _parts(sql) == _parts(expected))


@lru_cache(maxsize=64)
def _parts(sql: str) -> tuple[list[str], list[str], list[str]]:
    """The words before the outer parentheses, the sorted items between them, and the words behind."""
    import re  # the usual database is the one that this version makes, word by word

    words = re.findall(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\w+|[^ \t\n\r\f]""", sql, re.ASCII)
    words = [word.strip('"') if re.fullmatch('"[a-z_][a-z0-9_]*"', word) else word for word in words]
    if "(" not in words:
        return words, [], []
    start = words.index("(")
    items, depth, behind = [""], 1, start + 1
    while behind < len(words) and depth:
        word = words[behind]
        depth += (word == "(") - (word == ")")
        if depth == 1 and word == ",":
            items.append("")
        elif depth:
            items[-1] += f"{word} "
        behind += 1
    return words[:start], sorted(items), words[behind:]


def _shown(name: object) -> str:
    return repr(name)[:80]


def _foreign(database: Path, problem: str) -> DamagedError:
    return DamagedError(f"{database}: {problem}", commands=[Command("doctor")], unchanged="the bank was not changed")
