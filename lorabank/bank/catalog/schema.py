"""The tables of ``bank.db`` for Alembic, made of their description in `columns`: the migrations must make the same."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from lorabank.bank.catalog import columns

_TYPES = {"text": Text, "integer": Integer, "real": Float, "boolean": Boolean}

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _column(name: str, column: columns.Column) -> Column[object]:
    assert column.type is not None
    refers = [ForeignKey(column.refers)] if column.refers else []
    return Column(name, _TYPES[column.type], *refers, primary_key=column.key, nullable=column.empty)


def _table(name: str, described: columns.Described) -> None:
    few = {key: column.words for key, column in described.columns.items() if column.words}
    rules = {key: f"{key} IN ({', '.join(map(repr, words))})" for key, words in few.items()}
    table = Table(
        name,
        metadata,
        *(_column(key, column) for key, column in described.columns.items() if column.type),
        Column("row_digest", Text, nullable=False),
        *(CheckConstraint(rule, name=key) for key, rule in {**described.rules, **rules}.items()),
        *([UniqueConstraint(*described.unique)] if described.unique else []),
    )
    for index in described.indexes:
        Index(None, *(table.c[key] for key in index))
    if described.live:
        Index(f"uq_{name}_live_name", table.c.name, unique=True, sqlite_where=text("state != 'removed'"))


for _name, _described in columns.TABLES.items():
    _table(_name, _described)
