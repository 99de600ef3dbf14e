"""Archives of sessions."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_UP = (
    """
    CREATE TABLE archives (
        session_id UUID NOT NULL PRIMARY KEY REFERENCES sessions (id) ON DELETE CASCADE,
        state TEXT NOT NULL CHECK (state IN ('STORING', 'STORED', 'RESTORING', 'RESTORED', 'FAILED')),
        dropped BOOLEAN DEFAULT false NOT NULL,
        files_left BOOLEAN DEFAULT false NOT NULL,
        object TEXT,
        size BIGINT DEFAULT 0 NOT NULL,
        sha256 TEXT DEFAULT '' NOT NULL,
        event_count BIGINT DEFAULT 0 NOT NULL,
        file_count BIGINT DEFAULT 0 NOT NULL,
        has_workspace BOOLEAN DEFAULT false NOT NULL,
        attempts INTEGER DEFAULT 0 NOT NULL,
        error TEXT DEFAULT '' NOT NULL,
        lease UUID,
        lease_expire_time TIMESTAMP WITH TIME ZONE,
        due_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        store_time TIMESTAMP WITH TIME ZONE,
        restore_time TIMESTAMP WITH TIME ZONE
    )
    """,
    "CREATE INDEX archives_due ON archives (due_time) WHERE state IN ('STORING', 'RESTORING') OR files_left",
    "CREATE INDEX sessions_archived ON sessions (archive_time) WHERE archive_time IS NOT NULL AND delete_time IS NULL",
    """
    CREATE INDEX sessions_with_workspace ON sessions (workspace_time)
        WHERE workspace_time IS NOT NULL AND clean_time IS NULL
    """,
)
_DOWN = (
    "DROP INDEX sessions_with_workspace",
    "DROP INDEX sessions_archived",
    "DROP TABLE archives",
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN:
        op.execute(statement)
