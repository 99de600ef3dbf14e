"""Which level of isolation sessions need, and which workers have. Numbers of `domain.isolation.Level`."""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE session_heads ADD COLUMN needed_level SMALLINT NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE workers ADD COLUMN isolation_level SMALLINT NOT NULL DEFAULT 0")


def downgrade() -> None:
    op.execute("ALTER TABLE workers DROP COLUMN isolation_level")
    op.execute("ALTER TABLE session_heads DROP COLUMN needed_level")
