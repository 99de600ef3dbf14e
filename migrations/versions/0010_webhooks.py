"""Webhooks and what is on its way to them."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_UP = (
    """
    CREATE TABLE webhooks (
        id UUID PRIMARY KEY,
        owner UUID NOT NULL REFERENCES users (id),
        display_name TEXT NOT NULL,
        url TEXT NOT NULL,
        event_types TEXT[] NOT NULL,
        session_labels JSONB NOT NULL,
        all_users BOOLEAN NOT NULL,
        revision INTEGER NOT NULL,
        secret BYTEA NOT NULL,
        previous_secret BYTEA,
        previous_expire_time TIMESTAMP WITH TIME ZONE,
        disable_reason TEXT,
        consecutive_failures INTEGER DEFAULT 0 NOT NULL,
        failing_since TIMESTAMP WITH TIME ZONE,
        last_success_time TIMESTAMP WITH TIME ZONE,
        hold_time TIMESTAMP WITH TIME ZONE,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
    "CREATE INDEX webhooks_by_owner ON webhooks (owner, create_time DESC)",
    "CREATE INDEX webhooks_of_all ON webhooks (id) WHERE all_users AND disable_reason IS NULL",
    """
    CREATE TABLE webhook_deliveries (
        id UUID PRIMARY KEY,
        webhook_id UUID NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
        event_type TEXT NOT NULL,
        subject TEXT NOT NULL,
        payload TEXT NOT NULL,
        state TEXT NOT NULL,
        attempts BYTEA NOT NULL,
        attempt_count INTEGER DEFAULT 0 NOT NULL,
        tries INTEGER DEFAULT 0 NOT NULL,
        due_time TIMESTAMP WITH TIME ZONE NOT NULL,
        give_up_time TIMESTAMP WITH TIME ZONE NOT NULL,
        lease UUID,
        lease_time TIMESTAMP WITH TIME ZONE,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        end_time TIMESTAMP WITH TIME ZONE
    )
    """,
    "CREATE INDEX webhook_deliveries_by_webhook ON webhook_deliveries (webhook_id, id)",
    "CREATE INDEX webhook_deliveries_due ON webhook_deliveries (webhook_id, due_time) WHERE state = 'PENDING'",
    "CREATE INDEX webhook_deliveries_leased ON webhook_deliveries (webhook_id, lease_time) WHERE lease IS NOT NULL",
    "CREATE INDEX webhook_deliveries_ended ON webhook_deliveries (end_time) WHERE end_time IS NOT NULL",
)
_DOWN = ("DROP TABLE webhook_deliveries", "DROP TABLE webhooks")


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN:
        op.execute(statement)
