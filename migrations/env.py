"""Alembic's environment: one migration at a time, and never a long wait for a lock."""

import asyncio

from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from agentrpc.store.database import async_url
from agentrpc.store.tables import Base


def _run(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_lock(7400)"))
    # Behind a long transaction a migration gives up instead of stopping everybody who queues behind it.
    connection.execute(text("SET lock_timeout = '2s'"))
    connection.commit()
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()


async def _main() -> None:
    engine = create_async_engine(async_url(context.config.attributes["url"]))
    async with engine.connect() as connection:
        await connection.run_sync(_run)
    await engine.dispose()


asyncio.run(_main())
