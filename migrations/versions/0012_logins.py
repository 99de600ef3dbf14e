"""Where logins come from, and the refresh token before the newest."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both, and an index for clearing away what has expired."""
    op.execute(
        "ALTER TABLE logins ADD COLUMN previous_id UUID, ADD COLUMN refresh_time TIMESTAMP WITH TIME ZONE,"
        " ADD COLUMN address BYTEA DEFAULT ''::bytea NOT NULL"
    )
    op.execute("CREATE INDEX logins_by_address ON logins (user_id, address)")
    op.execute("CREATE INDEX logins_by_expire_time ON logins (expire_time)")
    op.execute("DROP INDEX ix_logins_user_id")


def downgrade() -> None:
    """Drop them."""
    op.execute("CREATE INDEX ix_logins_user_id ON logins (user_id)")
    op.execute("DROP INDEX logins_by_expire_time, logins_by_address")
    op.execute("ALTER TABLE logins DROP COLUMN address, DROP COLUMN refresh_time, DROP COLUMN previous_id")
