"""Agents, their versions, and tool groups."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_UP: tuple[str, ...] = (
    """
    CREATE TABLE agents (
        id UUID PRIMARY KEY,
        owner UUID NOT NULL REFERENCES users (id),
        display_name TEXT NOT NULL,
        description TEXT NOT NULL,
        category TEXT NOT NULL,
        tags TEXT[] NOT NULL,
        labels JSONB NOT NULL,
        shared BOOLEAN NOT NULL,
        default_version INTEGER NOT NULL,
        newest_version INTEGER NOT NULL,
        revision INTEGER DEFAULT 1 NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE NOT NULL,
        delete_time TIMESTAMP WITH TIME ZONE
    )
    """,
    "CREATE INDEX agents_by_owner ON agents (owner, create_time, id)",
    "CREATE INDEX agents_shared ON agents (create_time, id) WHERE shared AND delete_time IS NULL",
    """
    CREATE TABLE agent_versions (
        id UUID PRIMARY KEY,
        agent_id UUID NOT NULL REFERENCES agents (id),
        number INTEGER NOT NULL,
        options BYTEA NOT NULL,
        tool_groups UUID[] NOT NULL,
        note TEXT NOT NULL,
        creator UUID NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX agent_versions_by_number ON agent_versions (agent_id, number)",
    "CREATE INDEX agent_versions_by_tool_group ON agent_versions USING gin (tool_groups)",
    """
    CREATE TABLE agent_uses (
        id UUID PRIMARY KEY,
        agent_id UUID NOT NULL REFERENCES agents (id),
        count BIGINT NOT NULL,
        last_time TIMESTAMP WITH TIME ZONE NOT NULL
    ) WITH (fillfactor = 60)
    """,
    "CREATE INDEX agent_uses_by_agent ON agent_uses (agent_id)",
    """
    CREATE TABLE tool_groups (
        id UUID PRIMARY KEY,
        owner UUID NOT NULL REFERENCES users (id),
        display_name TEXT NOT NULL,
        description TEXT NOT NULL,
        labels JSONB NOT NULL,
        allowed_tools TEXT[] NOT NULL,
        disallowed_tools TEXT[] NOT NULL,
        shared BOOLEAN NOT NULL,
        revision INTEGER DEFAULT 1 NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
    "CREATE INDEX tool_groups_by_owner ON tool_groups (owner, create_time, id)",
    "ALTER TABLE sessions ADD COLUMN agent_id UUID, ADD COLUMN agent_number INTEGER",
    "CREATE INDEX sessions_by_agent ON sessions (agent_id, create_time, id) WHERE agent_id IS NOT NULL",
)
_DOWN: tuple[str, ...] = (
    "DROP INDEX sessions_by_agent",
    "ALTER TABLE sessions DROP COLUMN agent_id, DROP COLUMN agent_number",
    "DROP TABLE tool_groups",
    "DROP TABLE agent_uses",
    "DROP TABLE agent_versions",
    "DROP TABLE agents",
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN:
        op.execute(statement)
