"""What the migrations make; ``python -m tests.migrations.schemas`` writes it to ``lorabank/bank/catalog/schemas``."""

from __future__ import annotations

import sqlite3

from alembic import command
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from lorabank.bank.catalog import definitions
from lorabank.bank.catalog.migrating import alembic_config


def made_by_the_migrations(revision: str) -> str:
    """The texts of all tables and indexes of a revision, as SQLite keeps them."""
    memory = sqlite3.connect(":memory:", isolation_level=None)
    engine = create_engine("sqlite://", creator=lambda: memory, poolclass=StaticPool)
    with engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    query = "SELECT sql FROM sqlite_master WHERE sql NOT NULL ORDER BY type DESC, name"
    texts = [row[0] for row in memory.execute(query)]
    engine.dispose()
    memory.close()
    return "".join(f"{text};\n" for text in texts)


def same_schema(kept: str, made: str) -> bool:
    """Whether both define the same tables and indexes: Alembic writes constraints in any order."""
    one, other = definitions.parsed(kept), definitions.parsed(made)
    return one.keys() == other.keys() and all(
        one[name][:2] == other[name][:2] and definitions.same(one[name].sql, other[name].sql) for name in one
    )


if __name__ == "__main__":
    definitions.FOLDER.mkdir(exist_ok=True)
    for revision in definitions.REVISIONS:
        path, made = definitions.FOLDER / f"{revision}.sql", made_by_the_migrations(revision)
        if not path.exists() or not same_schema(path.read_text(encoding="utf-8"), made):
            path.write_text(made, encoding="utf-8")
