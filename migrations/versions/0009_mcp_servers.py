"""Registered MCP servers."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_UP = (
    """
    CREATE TABLE mcp_servers (
        id UUID PRIMARY KEY,
        owner UUID NOT NULL REFERENCES users (id),
        display_name TEXT NOT NULL,
        description TEXT NOT NULL,
        tags TEXT[] NOT NULL,
        shared BOOLEAN NOT NULL,
        config BYTEA NOT NULL,
        secrets BYTEA,
        extra TEXT NOT NULL,
        revision INTEGER NOT NULL,
        health_state TEXT NOT NULL,
        health BYTEA NOT NULL,
        tools BYTEA,
        due_time TIMESTAMP WITH TIME ZONE,
        lease UUID,
        lease_time TIMESTAMP WITH TIME ZONE,
        claim_time TIMESTAMP WITH TIME ZONE,
        checked_time TIMESTAMP WITH TIME ZONE,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE NOT NULL,
        CONSTRAINT mcp_servers_names UNIQUE (owner, display_name)
    )
    """,
    "CREATE INDEX mcp_servers_by_owner ON mcp_servers (owner, create_time DESC)",
    "CREATE INDEX mcp_servers_due ON mcp_servers (due_time) WHERE due_time IS NOT NULL",
)
_DOWN = ("DROP TABLE mcp_servers",)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN:
        op.execute(statement)
