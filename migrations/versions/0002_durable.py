"""What durable execution needs: intents, parked runs, calls in doubt, further messages."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UP = (
    "ALTER TABLE session_heads RENAME COLUMN interrupt_run TO stop_run",
    """
    ALTER TABLE session_heads
        ADD COLUMN stop_kind TEXT CHECK (stop_kind IN ('INTERRUPT', 'CANCEL', 'EXPIRE')),
        ADD COLUMN stop_time TIMESTAMP WITH TIME ZONE,
        ADD COLUMN paused BOOLEAN DEFAULT false NOT NULL,
        ADD COLUMN in_doubt BOOLEAN DEFAULT false NOT NULL,
        ADD COLUMN losses INTEGER DEFAULT 0 NOT NULL,
        ADD COLUMN inputs INTEGER DEFAULT 0 NOT NULL,
        ADD COLUMN claim_time TIMESTAMP WITH TIME ZONE
    """,
    "CREATE INDEX session_heads_served ON session_heads (tenant, claim_time)",
    "UPDATE session_heads SET stop_kind = 'INTERRUPT', stop_time = now() WHERE stop_run IS NOT NULL",
    "DROP INDEX session_heads_queue",
    """
    CREATE INDEX session_heads_queue ON session_heads (queued_since)
        WHERE queued > 0 AND active_run IS NULL AND closed IS NULL AND NOT paused
    """,
    """
    CREATE INDEX session_heads_released ON session_heads (session_id)
        WHERE active_run IS NOT NULL AND worker IS NULL AND pending_approvals = 0 AND NOT in_doubt AND NOT paused
    """,
    """
    ALTER TABLE runs
        ADD COLUMN inactivity_timeout INTERVAL,
        ADD COLUMN retry_of UUID,
        ADD COLUMN rewind_to UUID,
        ADD COLUMN stop_receipt BYTEA,
        ADD COLUMN decision BYTEA,
        ADD COLUMN doubt_time TIMESTAMP WITH TIME ZONE
    """,
    "DROP INDEX runs_open",
    """
    CREATE INDEX runs_open ON runs (state)
        WHERE state IN ('QUEUED', 'RUNNING', 'REQUIRES_ACTION', 'UNKNOWN_OUTCOME')
    """,
    """
    ALTER TABLE sessions
        ADD COLUMN pause_time TIMESTAMP WITH TIME ZONE,
        ADD COLUMN workspace_time TIMESTAMP WITH TIME ZONE,
        ADD COLUMN forked_from UUID
    """,
    "ALTER TABLE tool_calls ADD COLUMN attempt SMALLINT DEFAULT 1 NOT NULL",
    "ALTER TABLE tool_calls DROP CONSTRAINT tool_calls_pkey",
    "ALTER TABLE tool_calls ADD PRIMARY KEY (session_id, tool_use_id, attempt)",
    """
    CREATE TABLE run_inputs (
        id UUID NOT NULL,
        session_id UUID NOT NULL,
        run_id UUID NOT NULL,
        text TEXT NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        deliver_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (id),
        FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX run_inputs_by_run ON run_inputs (run_id)",
)

_DOWN = (
    "DROP TABLE run_inputs",
    "DELETE FROM tool_calls WHERE attempt > 1",
    "ALTER TABLE tool_calls DROP CONSTRAINT tool_calls_pkey",
    "ALTER TABLE tool_calls ADD PRIMARY KEY (session_id, tool_use_id)",
    "ALTER TABLE tool_calls DROP COLUMN attempt",
    "ALTER TABLE sessions DROP COLUMN pause_time, DROP COLUMN workspace_time, DROP COLUMN forked_from",
    "DROP INDEX runs_open",
    """
    ALTER TABLE runs
        DROP COLUMN inactivity_timeout, DROP COLUMN retry_of, DROP COLUMN rewind_to,
        DROP COLUMN stop_receipt, DROP COLUMN decision,
        DROP COLUMN doubt_time
    """,
    "CREATE INDEX runs_open ON runs (state) WHERE state IN ('QUEUED', 'RUNNING', 'REQUIRES_ACTION')",
    "DROP INDEX session_heads_released",
    "DROP INDEX session_heads_queue",
    """
    CREATE INDEX session_heads_queue ON session_heads (queued_since)
        WHERE queued > 0 AND active_run IS NULL AND closed IS NULL
    """,
    """
    ALTER TABLE session_heads
        DROP COLUMN stop_kind, DROP COLUMN stop_time, DROP COLUMN paused, DROP COLUMN in_doubt,
        DROP COLUMN losses, DROP COLUMN inputs, DROP COLUMN claim_time
    """,
    "ALTER TABLE session_heads RENAME COLUMN stop_run TO interrupt_run",
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN:
        op.execute(statement)
