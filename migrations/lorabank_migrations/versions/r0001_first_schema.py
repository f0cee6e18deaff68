"""The first schema.

Revision 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables of a bank."""
    op.create_table(
        "bank",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("bank_id", sa.Text(), nullable=False),
        sa.Column("format", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("created_with", sa.Text(), nullable=False),
        sa.Column("row_digest", sa.Text(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_bank_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bank")),
    )
    op.create_table(
        "base_model",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=True),
        sa.Column("config_hash", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("tokenizer_hash", sa.Text(), nullable=False),
        sa.Column("chat_template_hash", sa.Text(), nullable=True),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("quantisation", sa.Text(), nullable=True),
        sa.Column("task_type", sa.Text(), nullable=False),
        sa.Column("hidden_size", sa.Integer(), nullable=False),
        sa.Column("parameters", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("row_digest", sa.Text(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_base_model_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_base_model")),
    )
    op.create_table(
        "blobs",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("row_digest", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_blobs")),
    )
    op.create_table(
        "compositions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("parameters", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("removed_at", sa.Text(), nullable=True),
        sa.Column("row_digest", sa.Text(), nullable=False),
        sa.CheckConstraint("state IN ('ready', 'removed')", name=op.f("ck_compositions_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_compositions")),
    )
    op.create_index(
        "uq_compositions_live_name", "compositions", ["name"], unique=True, sqlite_where=sa.text("state != 'removed'")
    )
    op.create_table(
        "evaluations",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("low", sa.Float(), nullable=False),
        sa.Column("high", sa.Float(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("row_digest", sa.Text(), nullable=False),
        sa.CheckConstraint("task_id IN ('given', 'routed')", name=op.f("ck_evaluations_task_id")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_evaluations")),
    )
    op.create_table(
        "operations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("process_start", sa.Integer(), nullable=False),
        sa.Column("row_digest", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operations")),
        sa.UniqueConstraint("name", name=op.f("uq_operations_name")),
    )
    op.create_table(
        "composition_objects",
        sa.Column("composition", sa.Integer(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("blob", sa.Text(), nullable=False),
        sa.Column("row_digest", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["blob"], ["blobs.digest"], name=op.f("fk_composition_objects_blob_blobs")),
        sa.ForeignKeyConstraint(
            ["composition"], ["compositions.id"], name=op.f("fk_composition_objects_composition_compositions")
        ),
        sa.PrimaryKeyConstraint("composition", "role", name=op.f("pk_composition_objects")),
    )
    op.create_table(
        "tasks",
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("task_type", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("statistics", sa.Text(), nullable=True),
        sa.Column("prompt_template", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("removed_at", sa.Text(), nullable=True),
        sa.Column("row_digest", sa.Text(), nullable=False),
        sa.CheckConstraint("state IN ('training', 'ready', 'failed', 'removed')", name=op.f("ck_tasks_state")),
        sa.CheckConstraint("position > 0", name=op.f("ck_tasks_position")),
        sa.ForeignKeyConstraint(["statistics"], ["blobs.digest"], name=op.f("fk_tasks_statistics_blobs")),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_tasks")),
    )
    op.create_index("uq_tasks_live_name", "tasks", ["name"], unique=True, sqlite_where=sa.text("state != 'removed'"))
    op.create_table(
        "adapters",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("r", sa.Integer(), nullable=False),
        sa.Column("lora_alpha", sa.Float(), nullable=False),
        sa.Column("use_rslora", sa.Boolean(), nullable=False),
        sa.Column("target_modules", sa.Text(), nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("penalties", sa.Text(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("wall_seconds", sa.Float(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("head_digest", sa.Text(), nullable=True),
        sa.Column("versions", sa.Text(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("row_digest", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["tasks.position"], name=op.f("fk_adapters_id_tasks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapters")),
    )
    op.create_index("ix_adapters_digest", "adapters", ["digest"], unique=False)
    op.create_table(
        "datasets",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("task", sa.Integer(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("columns", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("rows_dropped", sa.Integer(), nullable=False),
        sa.Column("rows_cut", sa.Integer(), nullable=False),
        sa.Column("blob", sa.Text(), nullable=True),
        sa.Column("row_digest", sa.Text(), nullable=False),
        sa.CheckConstraint("split IN ('train', 'eval', 'calibration')", name=op.f("ck_datasets_split")),
        sa.ForeignKeyConstraint(["blob"], ["blobs.digest"], name=op.f("fk_datasets_blob_blobs")),
        sa.ForeignKeyConstraint(["task"], ["tasks.position"], name=op.f("fk_datasets_task_tasks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("task", "split", name=op.f("uq_datasets_task_split")),
    )
    op.create_table(
        "adapter_context",
        sa.Column("adapter", sa.Integer(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("member", sa.Integer(), nullable=False),
        sa.Column("row_digest", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["adapter"], ["adapters.id"], name=op.f("fk_adapter_context_adapter_adapters")),
        sa.ForeignKeyConstraint(["member"], ["adapters.id"], name=op.f("fk_adapter_context_member_adapters")),
        sa.PrimaryKeyConstraint("adapter", "ordinal", name=op.f("pk_adapter_context")),
    )
    op.create_table(
        "adapter_files",
        sa.Column("adapter", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("row_digest", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["adapter"], ["adapters.id"], name=op.f("fk_adapter_files_adapter_adapters")),
        sa.PrimaryKeyConstraint("adapter", "name", name=op.f("pk_adapter_files")),
    )
    op.create_table(
        "composition_members",
        sa.Column("composition", sa.Integer(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("adapter", sa.Integer(), nullable=False),
        sa.Column("row_digest", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["adapter"], ["adapters.id"], name=op.f("fk_composition_members_adapter_adapters")),
        sa.ForeignKeyConstraint(
            ["composition"], ["compositions.id"], name=op.f("fk_composition_members_composition_compositions")
        ),
        sa.PrimaryKeyConstraint("composition", "ordinal", name=op.f("pk_composition_members")),
    )


def downgrade() -> None:
    """There is no way back: restore the copy in the bank's backups folder."""
    raise CommandError("restore the copy in the bank's backups folder")
