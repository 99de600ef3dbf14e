"""The schema: which revision this code needs, and partitions made ahead of time."""

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

import agentrpc
from agentrpc.errors import AgentRpcError
from agentrpc.store.database import Database

__all__ = ["SchemaMismatch", "alembic_config", "check_schema", "ensure_partitions", "migrate"]

_MONTHS_AHEAD = 6


class SchemaMismatch(AgentRpcError):
    """The database has another schema than this code needs."""

    def __init__(self, found: str | None, needed: str) -> None:
        super().__init__(
            f"the database is at revision {found or 'none'}, this version needs {needed}: run `agentrpc migrate`",
            reason="INTERNAL",
        )


def alembic_config(url: str) -> Config:
    """Alembic's configuration for the migrations that came with this code."""
    package = Path(agentrpc.__file__).parent
    installed = package / "_migrations"
    config = Config()
    config.set_main_option("script_location", str(installed if installed.is_dir() else package.parent / "migrations"))
    config.attributes["url"] = url
    return config


def migrate(url: str, revision: str = "head") -> None:
    """Bring the database to `revision`. Blocking; one at a time by an advisory lock in the migration environment."""
    config = alembic_config(url)
    if revision == "base":
        command.downgrade(config, revision)
    else:
        command.upgrade(config, revision)


async def check_schema(database: Database) -> None:
    """Raise SchemaMismatch unless the database has the revision that this code was written for."""
    needed = ScriptDirectory.from_config(alembic_config("")).get_current_head()
    async with database.connection() as connection:
        exists = await connection.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL")
        found = await connection.fetchval("SELECT version_num FROM alembic_version") if exists else None
    if found != needed:
        raise SchemaMismatch(found, str(needed))


def _first_id(month: datetime) -> UUID:
    """The smallest UUIDv7 of a month, without version bits so that it sorts before all real ones."""
    return UUID(int=(int(month.timestamp() * 1000) << 80))


def partition_statements(now: datetime, months: int = _MONTHS_AHEAD) -> list[str]:
    """CREATE statements for the monthly partitions from this month on. Idempotent."""
    year, month = now.year, now.month
    statements = []
    for _ in range(months):
        start = datetime(year, month, 1, tzinfo=UTC)
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)
        end = datetime(year, month, 1, tzinfo=UTC)
        statements += [
            f"CREATE TABLE IF NOT EXISTS {table}_{start:%Y_%m} PARTITION OF {table}"
            f" FOR VALUES FROM ('{_first_id(start)}') TO ('{_first_id(end)}')"
            for table in ("session_events", "session_transcripts")
        ]
    return statements


async def ensure_partitions(database: Database, now: datetime) -> None:
    """Create the partitions of the coming months. The default partition catches whatever lies outside."""
    async with database.connection() as connection:
        for statement in partition_statements(now):
            await connection.execute(statement)
