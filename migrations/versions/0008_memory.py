"""Memory stores."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_UP = (
    """
    CREATE TABLE memory_stores (
        id UUID NOT NULL,
        owner UUID NOT NULL,
        display_name TEXT NOT NULL,
        description TEXT NOT NULL,
        shared BOOLEAN NOT NULL,
        readers UUID[] NOT NULL,
        max_entries INTEGER NOT NULL,
        max_bytes BIGINT NOT NULL,
        max_versions INTEGER NOT NULL,
        entry_count INTEGER DEFAULT 0 NOT NULL,
        byte_count BIGINT DEFAULT 0 NOT NULL,
        version_floor BIGINT DEFAULT 0 NOT NULL,
        revision INTEGER DEFAULT 1 NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (id),
        FOREIGN KEY(owner) REFERENCES users (id)
    )
    """,
    "CREATE INDEX memory_stores_by_owner ON memory_stores (owner, create_time, id)",
    """
    CREATE TABLE memory_entries (
        id UUID NOT NULL,
        store_id UUID NOT NULL,
        key TEXT COLLATE "C" NOT NULL,
        content TEXT NOT NULL,
        labels JSONB NOT NULL,
        byte_count INTEGER NOT NULL,
        version BIGINT NOT NULL,
        author UUID NOT NULL,
        session_id UUID,
        run_id UUID,
        create_time TIMESTAMP WITH TIME ZONE NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE NOT NULL,
        search TSVECTOR NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT memory_entries_by_key UNIQUE (store_id, key),
        FOREIGN KEY(store_id) REFERENCES memory_stores (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE TABLE memory_versions (
        id UUID NOT NULL,
        entry_id UUID NOT NULL,
        version BIGINT NOT NULL,
        content TEXT NOT NULL,
        labels JSONB NOT NULL,
        byte_count INTEGER NOT NULL,
        author UUID NOT NULL,
        session_id UUID,
        run_id UUID,
        update_time TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT memory_versions_by_number UNIQUE (entry_id, version),
        FOREIGN KEY(entry_id) REFERENCES memory_entries (id) ON DELETE CASCADE
    )
    """,
)
_DOWN = ("DROP TABLE memory_versions", "DROP TABLE memory_entries", "DROP TABLE memory_stores")


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN:
        op.execute(statement)
