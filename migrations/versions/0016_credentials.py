"""Credentials that the egress proxy adds to requests, and the certificate authority by which it does so in TLS."""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_UP = (
    """
    CREATE TABLE credentials (
        id UUID PRIMARY KEY,
        owner UUID NOT NULL REFERENCES users (id),
        display_name TEXT NOT NULL,
        description TEXT NOT NULL,
        shared BOOLEAN NOT NULL,
        hosts TEXT[] NOT NULL,
        kind BYTEA NOT NULL,
        secret BYTEA NOT NULL,
        revision INTEGER NOT NULL,
        last_used_time TIMESTAMP WITH TIME ZONE,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
    "CREATE INDEX credentials_by_owner ON credentials (owner, create_time DESC)",
    """
    CREATE TABLE certificate_authority (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        certificate BYTEA NOT NULL,
        key BYTEA NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
)
_DOWN = ("DROP TABLE certificate_authority", "DROP TABLE credentials")


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN:
        op.execute(statement)
