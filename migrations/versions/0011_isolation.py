"""How sessions are kept apart."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE sessions ADD COLUMN isolation_level TEXT")


def downgrade() -> None:
    op.execute("ALTER TABLE sessions DROP COLUMN isolation_level")
