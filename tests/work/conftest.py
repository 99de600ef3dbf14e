"""Sessions in the store, without an edge; and a worker in this process."""

import asyncio
import contextlib
from uuid import uuid4

import pytest

from agentrpc import clock
from agentrpc.embedded.scripted_model import ScriptedModel
from agentrpc.gateway.egress import EgressProxy
from agentrpc.gateway.interception import intercepting
from agentrpc.gateway.server import ModelGateway
from agentrpc.services.session_host.host import SessionHost
from agentrpc.store.tables import Run, Session, SessionHead, User
from agentrpc.testkit import write_cli
from tests.isolations import usable_isolation


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


@pytest.fixture
async def worker(settings, database, bus, edge, tmp_path):
    """Start a worker in this process, with the fake CLI or with the real one and a scripted model."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(fake, **more):
            model = await stack.enter_async_context(ScriptedModel())
            gateway = ModelGateway(upstream_url=model.url, api_key="sk")
            await gateway.start()
            stack.push_async_callback(gateway.stop)
            cli = write_cli(tmp_path / "cli-under-test") if fake else None
            changed = settings.model_copy(update={"cli_path": cli, **more})
            host = SessionHost(database, bus, changed, gateway, intercepting(EgressProxy), usable_isolation())
            await host.start()
            stack.push_async_callback(host.stop, 0.1)
            return host

        yield start
        await stack.aclose()
        await asyncio.sleep(0.05)
