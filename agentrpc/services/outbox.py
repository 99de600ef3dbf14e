"""Hands on what happened, after it is committed: to webhooks, to tasks, to whoever else has to know."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TypeAlias

import structlog

from agentrpc.errors import StoreUnavailable
from agentrpc.store.database import Database, Transaction
from agentrpc.store.outbox import Message, put_off, take_message

__all__ = ["Consumer", "Outbox"]

log = structlog.get_logger()

_LONGEST = timedelta(minutes=5)

Consumer: TypeAlias = Callable[[Transaction, Message], Awaitable[None]]


class Outbox:
    """Deals with messages, one transaction each. Any number may run.

    Args:
        database: The store.
        consumers: Each is told every message, in the transaction that deletes it: what a consumer stores counts exactly
            once. May be told again if another one fails. Does nothing outside the store, which others would wait for.
    """

    def __init__(self, database: Database, consumers: Sequence[Consumer]) -> None:
        self._database = database
        self._consumers = consumers

    async def drain(self) -> int:
        """Deal with all that is due; how many there were."""
        count = 0
        while await self._one():
            count += 1
        return count

    async def _one(self) -> bool:
        message: Message | None = None
        try:
            async with self._database.transaction() as tx:
                message = await take_message(tx)
                if message is None:
                    return False
                for consumer in self._consumers:
                    await consumer(tx, message)
        except Exception as error:
            if message is None or isinstance(error, StoreUnavailable):
                raise
            attempts = await put_off(self._database, message.id, _LONGEST)
            log.exception("message_not_dealt_with", topic=message.topic, message=message.id, attempts=attempts)
        return True
