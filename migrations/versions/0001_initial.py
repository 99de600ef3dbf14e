"""Everything that the first version keeps."""

from alembic import op

from agentrpc import clock
from agentrpc.store.schema import partition_statements
from agentrpc.store.tables import Base

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The tables as they are in the first version; later migrations change them step by step.
    Base.metadata.create_all(op.get_bind())
    for table in ("session_events", "session_transcripts"):
        op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
    for statement in partition_statements(clock.utcnow()):
        op.execute(statement)


def downgrade() -> None:
    Base.metadata.drop_all(op.get_bind())
