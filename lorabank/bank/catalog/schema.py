"""The tables of ``bank.db``; the migrations make them, a test holds both together.

Rows are never changed but for ``state`` and the process columns of ``operations``, which a ``row_digest`` does not
cover (``rows.IMMUTABLE``), and for names, notes, tags and ``removed_at``: such a row is sealed anew.
Structured values are JSON text, so that the digest is over the very bytes that are stored and reading needs no
SQLAlchemy.
"""

from __future__ import annotations

from typing import Any

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

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _text(name: str, **options: Any) -> Column[str]:
    return Column(name, Text, nullable=False, **options)


def _integer(name: str, **options: Any) -> Column[int]:
    return Column(name, Integer, nullable=False, **options)


def _real(name: str) -> Column[float]:
    return Column(name, Float, nullable=False)


def _reference(name: str, target: str, *, primary_key: bool = False) -> Column[int]:
    return Column(name, Integer, ForeignKey(target), primary_key=primary_key, nullable=False)


def _blob(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, Text, ForeignKey("blobs.digest"), nullable=nullable)


def _seal() -> Column[str]:
    return _text("row_digest")


bank = Table(
    "bank",
    metadata,
    Column("id", Integer, primary_key=True),
    _text("bank_id"),
    _integer("format"),
    _text("created_at"),
    _text("created_with"),
    _seal(),
    CheckConstraint("id = 1", name="one_row"),
)

base_model = Table(
    "base_model",
    metadata,
    Column("id", Integer, primary_key=True),
    _text("name"),
    _text("source"),
    Column("revision", Text),
    _text("config_hash"),
    _text("fingerprint"),
    _text("tokenizer_hash"),
    Column("chat_template_hash", Text),
    _text("dtype"),
    Column("quantisation", Text),
    _text("task_type"),
    _integer("hidden_size"),
    _integer("parameters"),
    _text("created_at"),
    _seal(),
    CheckConstraint("id = 1", name="one_row"),
)

blobs = Table(
    "blobs",
    metadata,
    Column("digest", Text, primary_key=True, nullable=False),
    _integer("bytes"),
    _text("created_at"),
    _seal(),
)

tasks = Table(
    "tasks",
    metadata,
    Column("position", Integer, primary_key=True),
    _text("name"),
    _text("task_type"),
    _text("labels"),
    _blob("statistics", nullable=True),
    Column("prompt_template", Text),
    _text("created_at"),
    _text("state"),
    Column("removed_at", Text),
    _seal(),
    Column("note", Text),
    Column("tags", Text),
    Column("first_name", Text),
    Column("replaces", Integer),
    CheckConstraint("state IN ('training', 'ready', 'failed', 'removed')", name="state"),
    CheckConstraint("position > 0", name="position"),
)
Index("uq_tasks_live_name", tasks.c.name, unique=True, sqlite_where=text("state != 'removed'"))

datasets = Table(
    "datasets",
    metadata,
    Column("id", Integer, primary_key=True),
    _reference("task", "tasks.position"),
    _text("split"),
    _integer("rows"),
    _text("columns"),
    _text("sha256"),
    _text("source"),
    _integer("rows_dropped"),
    _integer("rows_cut"),
    _blob("blob", nullable=True),
    _seal(),
    _blob("row_digests", nullable=True),
    UniqueConstraint("task", "split"),
    CheckConstraint("split IN ('train', 'eval', 'calibration', 'replay')", name="split"),
)

adapters = Table(
    "adapters",
    metadata,
    Column("id", Integer, ForeignKey("tasks.position"), primary_key=True),
    _text("digest", index=True),
    _integer("r"),
    _real("lora_alpha"),
    Column("use_rslora", Boolean, nullable=False),
    _text("target_modules"),
    _text("strategy"),
    _text("penalties"),
    _integer("seed"),
    _integer("steps"),
    _real("wall_seconds"),
    _text("device"),
    _integer("bytes"),
    Column("head_digest", Text),
    _text("versions"),
    _text("config"),
    _text("metrics"),
    _text("created_at"),
    _seal(),
)

adapter_files = Table(
    "adapter_files",
    metadata,
    _reference("adapter", "adapters.id", primary_key=True),
    Column("name", Text, primary_key=True, nullable=False),
    _text("sha256"),
    _integer("bytes"),
    _seal(),
)

adapter_context = Table(
    "adapter_context",
    metadata,
    _reference("adapter", "adapters.id", primary_key=True),
    Column("ordinal", Integer, primary_key=True, nullable=False),
    _reference("member", "adapters.id"),
    _seal(),
)

adapter_objects = Table(
    "adapter_objects",
    metadata,
    _reference("adapter", "adapters.id", primary_key=True),
    Column("role", Text, primary_key=True, nullable=False),
    _blob("blob"),
    _seal(),
)

compositions = Table(
    "compositions",
    metadata,
    Column("id", Integer, primary_key=True),
    _text("name"),
    _text("mode"),
    _text("parameters"),
    _text("created_at"),
    _text("state"),
    Column("removed_at", Text),
    _seal(),
    Column("note", Text),
    Column("tags", Text),
    CheckConstraint("state IN ('ready', 'removed')", name="state"),
)
Index("uq_compositions_live_name", compositions.c.name, unique=True, sqlite_where=text("state != 'removed'"))

composition_members = Table(
    "composition_members",
    metadata,
    _reference("composition", "compositions.id", primary_key=True),
    Column("ordinal", Integer, primary_key=True, nullable=False),
    _reference("adapter", "adapters.id"),
    _seal(),
    Column("known_as", Text),
)

composition_objects = Table(
    "composition_objects",
    metadata,
    _reference("composition", "compositions.id", primary_key=True),
    Column("role", Text, primary_key=True, nullable=False),
    _blob("blob"),
    _seal(),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("key", Text, primary_key=True, nullable=False),
    _text("subject"),
    _integer("stage"),
    _text("task"),
    _text("metric"),
    _real("value"),
    _integer("n"),
    _real("low"),
    _real("high"),
    _text("task_id"),
    _text("settings"),
    _text("detail"),
    _text("created_at"),
    _seal(),
    CheckConstraint("task_id IN ('given', 'routed')", name="task_id"),
)

operations = Table(
    "operations",
    metadata,
    Column("id", Text, primary_key=True, nullable=False),
    _text("kind"),
    _text("name"),
    _text("config"),
    _text("started_at"),
    _integer("pid"),
    _text("boot_id"),
    _text("host"),
    _integer("process_start"),
    _seal(),
    Column("seen_at", Text),
    UniqueConstraint("name"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    _text("kind"),
    _text("name"),
    _text("detail"),
    Column("undoes", Integer, ForeignKey("events.id")),
    _text("version"),
    _text("created_at"),
    _seal(),
    UniqueConstraint("undoes"),
)
