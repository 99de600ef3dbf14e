"""Seals secrets that were stored in the clear, before migration 0014: once, a few rows at a time, by any scheduler.

It can be stopped and begun again anywhere. Done it is when a whole pass has found nothing: processes of the version
before may still have stored something during the first.
"""

from uuid import UUID

import structlog

from agentrpc.errors import AgentRpcError
from agentrpc.services.secrets import SecretBox
from agentrpc.settings import Settings
from agentrpc.store.database import Database
from agentrpc.store.options import TABLES, is_done, note_done, page_of, put
from agentrpc.v1 import session_pb2, task_pb2

__all__ = ["seal_in_the_background", "seal_stored_options"]

log = structlog.get_logger()

_NAME = "sealed-options"
_PAGE = 200


async def seal_in_the_background(database: Database, settings: Settings) -> None:
    """Seal what is not. What goes wrong is tried again by the next scheduler that starts."""
    try:
        await seal_stored_options(database, settings)
    except AgentRpcError as error:
        log.warning("secrets_not_sealed", reason=error.reason)


async def seal_stored_options(database: Database, settings: Settings) -> int:
    """Seal what is not; how many rows that were. Without a key nothing can be sealed, and everything stays as it is."""
    if not settings.secret_keys:
        log.warning("secrets_in_the_clear", remedy="set AGENTRPC_SECRET_KEYS and start the scheduler again")
        return 0
    async with database.transaction() as tx:
        if await is_done(tx, _NAME):
            return 0
    box, count = SecretBox(settings.secret_keys), 0
    for table in TABLES:
        after = UUID(int=0)
        while True:
            async with database.transaction() as tx:
                rows = await page_of(tx, table, after, _PAGE)
                for row_id, stored in rows:
                    sealed = _sealed(box, table, stored)
                    if sealed != stored:
                        await put(tx, table, row_id, sealed)
                        count += 1
            if not rows:
                break
            after = rows[-1][0]
    if not count:
        async with database.transaction() as tx:
            await note_done(tx, _NAME)
    log.info("secrets_sealed", rows=count)
    return count


def _sealed(box: SecretBox, table: str, stored: bytes) -> bytes:
    message: session_pb2.SessionOptions | task_pb2.Task
    if table == "tasks":
        message = task_pb2.Task.FromString(stored)
        options = message.options
    else:
        message = options = session_pb2.SessionOptions.FromString(stored)
    if not options.mcp_servers:
        return stored
    before = options.SerializeToString(deterministic=True)
    box.seal_options(options)
    if options.SerializeToString(deterministic=True) == before:
        return stored
    return message.SerializeToString(deterministic=True)
