"""Rules that owners cannot take away, a number that says when rules have changed, and grants that can be revoked."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_UP = (
    "ALTER TABLE sessions ADD COLUMN imposed_rules TEXT[] DEFAULT '{}' NOT NULL",
    "ALTER TABLE sessions ADD COLUMN rules_revision INTEGER DEFAULT 0 NOT NULL",
    "ALTER TABLE session_grants ADD COLUMN id UUID DEFAULT gen_random_uuid() NOT NULL",
    "ALTER TABLE session_grants ADD COLUMN creator UUID",
    "ALTER TABLE session_grants ADD COLUMN create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL",
    # Those of before were added when their approval was answered.
    "UPDATE session_grants g SET create_time = a.update_time FROM approvals a WHERE a.id = g.approval_id",
    "CREATE UNIQUE INDEX session_grants_by_id ON session_grants (id)",
)
_DOWN = (
    "DROP INDEX session_grants_by_id",
    "ALTER TABLE session_grants DROP COLUMN id, DROP COLUMN creator, DROP COLUMN create_time",
    "ALTER TABLE sessions DROP COLUMN imposed_rules, DROP COLUMN rules_revision",
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN:
        op.execute(statement)
