"""Reports."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_UP = (
    """
    CREATE TABLE reports (
        id UUID PRIMARY KEY,
        owner UUID NOT NULL REFERENCES users (id),
        display_name TEXT NOT NULL,
        labels JSONB NOT NULL,
        subject TEXT NOT NULL,
        format TEXT NOT NULL,
        shared BOOLEAN NOT NULL,
        given BYTEA NOT NULL,
        usage_owner UUID,
        state TEXT NOT NULL CHECK (state IN ('PENDING', 'RUNNING', 'SUCCEEDED', 'FAILED')),
        progress SMALLINT DEFAULT 0 NOT NULL,
        attempt INTEGER DEFAULT 0 NOT NULL,
        lease UUID,
        lease_expire_time TIMESTAMP WITH TIME ZONE,
        error BYTEA,
        size BIGINT DEFAULT 0 NOT NULL,
        sha256 TEXT DEFAULT '' NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        start_time TIMESTAMP WITH TIME ZONE,
        end_time TIMESTAMP WITH TIME ZONE
    )
    """,
    "CREATE INDEX reports_by_owner ON reports (owner, create_time, id)",
    "CREATE INDEX reports_shared ON reports (create_time, id) WHERE shared",
    "CREATE INDEX reports_by_subject ON reports (subject) WHERE subject <> ''",
    "CREATE INDEX reports_by_labels ON reports USING gin (labels)",
    "CREATE INDEX reports_open ON reports (id) WHERE state IN ('PENDING', 'RUNNING')",
    """
    CREATE TABLE report_chunks (
        report_id UUID NOT NULL REFERENCES reports (id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        data BYTEA NOT NULL,
        PRIMARY KEY (report_id, position)
    )
    """,
    # What was rendered is compressed already, or is not worth the time.
    "ALTER TABLE report_chunks ALTER COLUMN data SET STORAGE EXTERNAL",
)
_DOWN = ("DROP TABLE report_chunks", "DROP TABLE reports")


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN:
        op.execute(statement)
