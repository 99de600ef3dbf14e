"""Tasks, their executions, and the slots of their schedules."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_UP: tuple[str, ...] = (
    """
    CREATE TABLE tasks (
        id UUID PRIMARY KEY,
        owner UUID NOT NULL REFERENCES users (id),
        display_name TEXT NOT NULL,
        description TEXT NOT NULL,
        labels JSONB NOT NULL,
        spec BYTEA NOT NULL,
        agent_id UUID,
        tool_groups UUID[] NOT NULL,
        shared BOOLEAN NOT NULL,
        revision INTEGER DEFAULT 1 NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE NOT NULL,
        delete_time TIMESTAMP WITH TIME ZONE,
        execution_count BIGINT DEFAULT 0 NOT NULL,
        succeeded_count BIGINT DEFAULT 0 NOT NULL,
        failed_count BIGINT DEFAULT 0 NOT NULL,
        cancelled_count BIGINT DEFAULT 0 NOT NULL,
        timed_count BIGINT DEFAULT 0 NOT NULL,
        duration INTERVAL DEFAULT '0'::interval NOT NULL,
        usage BYTEA DEFAULT ''::bytea NOT NULL,
        scheduled BOOLEAN DEFAULT false NOT NULL,
        paused BOOLEAN DEFAULT false NOT NULL,
        next_slot_time TIMESTAMP WITH TIME ZONE,
        last_slot_time TIMESTAMP WITH TIME ZONE,
        fired_count BIGINT DEFAULT 0 NOT NULL,
        skipped_count BIGINT DEFAULT 0 NOT NULL,
        missed_count BIGINT DEFAULT 0 NOT NULL,
        failure_count INTEGER DEFAULT 0 NOT NULL,
        generation INTEGER DEFAULT 0 NOT NULL
    )
    """,
    "CREATE INDEX tasks_by_owner ON tasks (owner, create_time, id)",
    "CREATE INDEX tasks_by_labels ON tasks USING gin (labels)",
    "CREATE INDEX tasks_shared ON tasks (create_time, id) WHERE shared",
    "CREATE INDEX tasks_by_agent ON tasks (agent_id) WHERE agent_id IS NOT NULL",
    "CREATE INDEX tasks_by_tool_group ON tasks USING gin (tool_groups)",
    "CREATE INDEX tasks_due ON tasks (next_slot_time) WHERE next_slot_time IS NOT NULL AND NOT paused",
    """
    CREATE TABLE executions (
        id UUID PRIMARY KEY,
        task_id UUID NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
        trigger TEXT NOT NULL CHECK (trigger IN ('MANUAL', 'SCHEDULE', 'BACKFILL', 'RETRY')),
        creator UUID NOT NULL,
        variables TEXT NOT NULL,
        state TEXT NOT NULL
            CHECK (state IN ('PENDING', 'STARTED', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'EXPIRED')),
        slot_time TIMESTAMP WITH TIME ZONE,
        due_time TIMESTAMP WITH TIME ZONE,
        buffered BOOLEAN DEFAULT false NOT NULL,
        backfill_id UUID,
        session_id UUID,
        run_id UUID,
        agent TEXT DEFAULT '' NOT NULL,
        attempt INTEGER DEFAULT 1 NOT NULL,
        retry_of UUID,
        tries INTEGER DEFAULT 0 NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        end_time TIMESTAMP WITH TIME ZONE,
        error BYTEA,
        stop TEXT CHECK (stop IN ('INTERRUPT', 'CANCEL')),
        stopped BOOLEAN DEFAULT false NOT NULL,
        CONSTRAINT executions_started CHECK (state <> 'STARTED' OR run_id IS NOT NULL)
    )
    """,
    "CREATE INDEX executions_by_task ON executions (task_id, id)",
    "CREATE INDEX executions_by_creator ON executions (creator, id)",
    "CREATE UNIQUE INDEX executions_by_run ON executions (run_id) WHERE run_id IS NOT NULL",
    "CREATE INDEX executions_open ON executions (task_id, id) WHERE state IN ('PENDING', 'STARTED')",
    "CREATE INDEX executions_due ON executions (due_time) WHERE state = 'PENDING' AND NOT buffered",
    "CREATE INDEX executions_stopping ON executions (id) WHERE stop IS NOT NULL AND state IN ('PENDING', 'STARTED')",
    """
    CREATE TABLE slots (
        task_id UUID NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
        kind TEXT NOT NULL CHECK (kind IN ('SCHEDULE', 'BACKFILL')),
        nominal TIMESTAMP WITH TIME ZONE NOT NULL,
        backfill_id UUID NOT NULL,
        outcome TEXT NOT NULL CHECK (outcome IN ('FIRED', 'SKIPPED', 'BUFFERED')),
        execution_id UUID,
        deal_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        PRIMARY KEY (task_id, kind, nominal, backfill_id)
    )
    """,
    "CREATE INDEX slots_by_time ON slots (deal_time)",
)
_DOWN: tuple[str, ...] = ("DROP TABLE slots", "DROP TABLE executions", "DROP TABLE tasks")


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN:
        op.execute(statement)
