"""How often the configuration of a registered MCP server was changed; which one-off work on stored rows is done."""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both."""
    op.execute("ALTER TABLE mcp_servers ADD COLUMN config_revision INTEGER NOT NULL DEFAULT 1")
    op.execute("CREATE TABLE data_migrations (name TEXT PRIMARY KEY, done_time TIMESTAMP WITH TIME ZONE NOT NULL)")


def downgrade() -> None:
    """Take it back. Values that were sealed since stay sealed: what was before does not open them."""
    op.execute("DROP TABLE data_migrations")
    op.execute("ALTER TABLE mcp_servers DROP COLUMN config_revision")
