"""Everything that the first version keeps."""

from alembic import op

from agentrpc import clock
from agentrpc.store.schema import partition_statements

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    CREATE TABLE requests (
        principal UUID NOT NULL,
        method TEXT NOT NULL,
        request_id UUID NOT NULL,
        body_hash BYTEA NOT NULL,
        resource_id UUID NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (principal, method, request_id)
    )
    """,
    """
    CREATE INDEX requests_by_time ON requests (create_time)
    """,
    """
    CREATE TABLE session_events (
        session_id UUID NOT NULL,
        sequence BIGINT NOT NULL,
        run_id UUID,
        kind SMALLINT NOT NULL,
        data BYTEA NOT NULL,
        PRIMARY KEY (session_id, sequence)
    )
     PARTITION BY RANGE (session_id)
    """,
    """
    CREATE TABLE session_transcripts (
        session_id UUID NOT NULL,
        position BIGINT NOT NULL,
        subpath TEXT NOT NULL,
        data BYTEA NOT NULL,
        PRIMARY KEY (session_id, position)
    )
     PARTITION BY RANGE (session_id)
    """,
    """
    CREATE TABLE tool_calls (
        session_id UUID NOT NULL,
        tool_use_id TEXT NOT NULL,
        run_id UUID NOT NULL,
        epoch BIGINT NOT NULL,
        tool_name TEXT NOT NULL,
        start_time TIMESTAMP WITH TIME ZONE NOT NULL,
        end_time TIMESTAMP WITH TIME ZONE,
        outcome SMALLINT,
        PRIMARY KEY (session_id, tool_use_id)
    )
    """,
    """
    CREATE INDEX tool_calls_in_doubt ON tool_calls (session_id) WHERE outcome IS NULL
    """,
    """
    CREATE TABLE users (
        id UUID NOT NULL,
        username TEXT NOT NULL,
        password_hash TEXT NOT NULL,
        role TEXT NOT NULL CHECK (role IN ('VIEWER', 'USER', 'ADMIN')),
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        disable_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (id),
        UNIQUE (username)
    )
    """,
    """
    CREATE TABLE workers (
        id UUID NOT NULL,
        host TEXT NOT NULL,
        pid INTEGER NOT NULL,
        version TEXT NOT NULL,
        start_time TIMESTAMP WITH TIME ZONE NOT NULL,
        lease_expire_time TIMESTAMP WITH TIME ZONE NOT NULL,
        dead_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (id)
    )
    """,
    """
    CREATE TABLE logins (
        id UUID NOT NULL,
        user_id UUID NOT NULL,
        refresh_id UUID NOT NULL,
        expire_time TIMESTAMP WITH TIME ZONE NOT NULL,
        end_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (id),
        FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX ix_logins_user_id ON logins (user_id)
    """,
    """
    CREATE TABLE sessions (
        id UUID NOT NULL,
        owner UUID NOT NULL,
        display_name TEXT NOT NULL,
        description TEXT NOT NULL,
        labels JSONB NOT NULL,
        options BYTEA NOT NULL,
        revision INTEGER DEFAULT 1 NOT NULL,
        claude_session_id UUID NOT NULL,
        agent_version TEXT,
        usage BYTEA DEFAULT ''::bytea NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE NOT NULL,
        archive_time TIMESTAMP WITH TIME ZONE,
        delete_time TIMESTAMP WITH TIME ZONE,
        clean_time TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (id),
        FOREIGN KEY(owner) REFERENCES users (id)
    )
    """,
    """
    CREATE INDEX sessions_by_labels ON sessions USING gin (labels)
    """,
    """
    CREATE INDEX sessions_by_owner ON sessions (owner, create_time, id)
    """,
    """
    CREATE TABLE approvals (
        id UUID NOT NULL,
        session_id UUID NOT NULL,
        tenant UUID NOT NULL,
        run_id UUID NOT NULL,
        state TEXT NOT NULL,
        question BYTEA NOT NULL,
        expire_time TIMESTAMP WITH TIME ZONE NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE NOT NULL,
        resolution BYTEA,
        PRIMARY KEY (id),
        FOREIGN KEY(session_id) REFERENCES sessions (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX approvals_by_session ON approvals (session_id, id)
    """,
    """
    CREATE INDEX approvals_changed ON approvals (update_time)
    """,
    """
    CREATE INDEX approvals_pending ON approvals (expire_time) WHERE state = 'PENDING'
    """,
    """
    CREATE TABLE runs (
        id UUID NOT NULL,
        session_id UUID NOT NULL,
        creator UUID NOT NULL,
        state TEXT NOT NULL,
        prompt TEXT NOT NULL,
        conflict_policy TEXT NOT NULL,
        timeout INTERVAL,
        labels JSONB NOT NULL,
        attempt INTEGER DEFAULT 0 NOT NULL,
        first_sequence BIGINT DEFAULT 0 NOT NULL,
        last_sequence BIGINT DEFAULT 0 NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        start_time TIMESTAMP WITH TIME ZONE,
        end_time TIMESTAMP WITH TIME ZONE,
        result BYTEA,
        error BYTEA,
        usage BYTEA,
        cost_usd NUMERIC(14, 8) DEFAULT 0 NOT NULL,
        interrupt_reason TEXT,
        PRIMARY KEY (id),
        FOREIGN KEY(session_id) REFERENCES sessions (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX runs_by_creator ON runs (creator, id)
    """,
    """
    CREATE INDEX runs_by_session ON runs (session_id, id)
    """,
    """
    CREATE INDEX runs_open ON runs (state) WHERE state IN ('QUEUED', 'RUNNING', 'REQUIRES_ACTION')
    """,
    """
    CREATE TABLE session_grants (
        session_id UUID NOT NULL,
        rule TEXT NOT NULL,
        approval_id UUID NOT NULL,
        PRIMARY KEY (session_id, rule),
        FOREIGN KEY(session_id) REFERENCES sessions (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE TABLE session_heads (
        session_id UUID NOT NULL,
        tenant UUID NOT NULL,
        last_sequence BIGINT DEFAULT 0 NOT NULL,
        transcript_position BIGINT DEFAULT 0 NOT NULL,
        epoch BIGINT DEFAULT 0 NOT NULL,
        worker UUID,
        batch BIGINT DEFAULT 0 NOT NULL,
        batch_base BIGINT DEFAULT 0 NOT NULL,
        active_run UUID,
        queued INTEGER DEFAULT 0 NOT NULL,
        queued_since TIMESTAMP WITH TIME ZONE,
        pending_approvals INTEGER DEFAULT 0 NOT NULL,
        run_count INTEGER DEFAULT 0 NOT NULL,
        tool_call_count INTEGER DEFAULT 0 NOT NULL,
        interrupt_run UUID,
        closed TEXT CHECK (closed IN ('ARCHIVED', 'FAILED')),
        PRIMARY KEY (session_id),
        FOREIGN KEY(session_id) REFERENCES sessions (id) ON DELETE CASCADE
    )
     WITH (fillfactor = 60)
    """,
    """
    CREATE INDEX session_heads_active ON session_heads (tenant) WHERE active_run IS NOT NULL
    """,
    """
    CREATE INDEX session_heads_by_worker ON session_heads (worker) WHERE worker IS NOT NULL
    """,
    """
    CREATE INDEX session_heads_queue ON session_heads (queued_since) WHERE queued > 0 AND active_run IS NULL AND closed IS NULL
    """,
)
_TABLES = (
    "session_heads",
    "session_grants",
    "runs",
    "approvals",
    "sessions",
    "logins",
    "workers",
    "users",
    "tool_calls",
    "session_transcripts",
    "session_events",
    "requests",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
    for table in ("session_events", "session_transcripts"):
        op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
    for statement in partition_statements(clock.utcnow()):
        op.execute(statement)


def downgrade() -> None:
    for table in _TABLES:
        op.execute(f"DROP TABLE {table}")
