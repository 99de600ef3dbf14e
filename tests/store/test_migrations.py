"""The schema goes up and down, and is what the tables say."""

import asyncio
import importlib
import pkgutil

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import create_async_engine

import agentrpc.store
from agentrpc.store.database import Database, async_url
from agentrpc.store.schema import SchemaMismatch, check_schema, ensure_partitions, migrate
from agentrpc.store.tables import Base

for _module in pkgutil.iter_modules(agentrpc.store.__path__, "agentrpc.store."):
    # Rows stand with their queries.
    importlib.import_module(_module.name)


def _differences(url):
    async def run():
        engine = create_async_engine(async_url(url))
        async with engine.connect() as connection:
            found = await connection.run_sync(
                lambda c: compare_metadata(
                    MigrationContext.configure(
                        c,
                        opts={
                            "include_name": lambda name, kind, _: (
                                not (
                                    kind == "table"
                                    and name
                                    and name.startswith(("session_events_", "session_transcripts_"))
                                )
                            )
                        },
                    ),
                    Base.metadata,
                )
            )
        await engine.dispose()
        return found

    return asyncio.run(run())


def test_down_and_up_again(database_url):
    assert _differences(database_url) == []
    migrate(database_url, "base")
    migrate(database_url)
    assert _differences(database_url) == []


async def test_a_process_refuses_another_schema(database):
    await check_schema(database)
    async with database.connection() as connection:
        await connection.execute("UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(SchemaMismatch, match="agentrpc migrate"):
        await check_schema(database)


async def test_partitions_are_made_ahead_and_again(database: Database):
    from agentrpc import clock

    await ensure_partitions(database, clock.utcnow())
    async with database.connection() as connection:
        count = await connection.fetchval(
            "SELECT count(*) FROM pg_inherits WHERE inhparent = 'session_events'::regclass"
        )
    assert count >= 7
