"""Sessions in the store, without an edge."""

from uuid import uuid4

import pytest

from agentrpc import clock
from agentrpc.store.tables import Run, Session, SessionHead, User


@pytest.fixture
def add_session(database):
    """Adds a session of a tenant (a new one unless given) with so many runs that wait, and returns its id."""

    async def add(tenant=None, queued=0):
        session_id = clock.uuid7()
        tenant = tenant or clock.uuid7()
        now = clock.utcnow()
        async with database.transaction() as tx:
            if await tx.get(User, tenant) is None:
                tx.add(User(id=tenant, username=str(tenant), password_hash="", role="USER", create_time=now))
                await tx.flush()
            tx.add(
                Session(
                    id=session_id, owner=tenant, display_name="", description="", labels={}, options=b"",
                    claude_session_id=uuid4(), usage=b"", create_time=now, update_time=now,
                )
            )  # fmt: skip
            await tx.flush()
            for _ in range(queued):
                tx.add(
                    Run(
                        id=clock.uuid7(), session_id=session_id, creator=tenant, state="QUEUED", prompt="x",
                        conflict_policy="ENQUEUE", labels={}, create_time=clock.utcnow(),
                    )
                )  # fmt: skip
            head = SessionHead(session_id=session_id, tenant=tenant, epoch=1, queued=queued)
            head.queued_since = now if queued else None
            tx.add(head)
        return session_id

    return add
