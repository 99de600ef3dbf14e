"""A process that writes sessions' events as a worker does: real writer, real Postgres and Redis, no agent."""

import argparse
import asyncio
import time
from uuid import UUID

from agentrpc.bus.redis_bus import Bus
from agentrpc.claude.translation import Delta
from agentrpc.services.session_host.writer import SessionWriter
from agentrpc.store.database import Database
from agentrpc.v1 import event_pb2


async def claim(database: Database, session_id: UUID) -> tuple[int, int]:
    async with database.connection() as connection:
        row = await connection.fetchrow(
            "UPDATE session_heads SET epoch = epoch + 1, batch = 0 WHERE session_id = $1 RETURNING epoch, last_sequence",
            session_id,
        )
    return row[0], row[1]


async def drive(writer: SessionWriter, rate: float, seconds: float, durable: float, start: float) -> None:
    """Deltas (and a part of durable events) at a steady rate; each carries the moment it was made."""
    offset = 0
    count = int(rate * seconds)
    for number in range(count):
        due = start + number / rate
        wait = due - time.time()
        if wait > 0:
            await asyncio.sleep(wait)
        stamp = f"{time.time():.6f} "
        if durable and number % round(1 / durable) == 0:
            writer.put(event_pb2.Event(notice=event_pb2.Notice(text=stamp)))
        else:
            writer.put_delta(Delta("text", f"m{number}", 0, 0, stamp, "", "", ""))
        offset += len(stamp)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database")
    parser.add_argument("--redis")
    parser.add_argument("--signing-key")
    parser.add_argument("--sessions")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--durable", type=float, default=0)
    parser.add_argument("--burst", type=int, default=0)
    given = parser.parse_args()
    database, bus = Database(given.database, pool_size=8), Bus(given.redis, given.signing_key)
    writers = []
    for text in given.sessions.split(","):
        session_id = UUID(text)
        epoch, last = await claim(database, session_id)
        writers.append(SessionWriter(database, bus, session_id, epoch=epoch, batch=0, last_sequence=last))
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, input)
    if given.burst:
        for number in range(given.burst):
            writers[0].put_delta(Delta("text", f"m{number}", 0, 0, f"{number:040d}", "", "", ""))
        await writers[0].flush()
    else:
        start = time.time() + 0.2
        steps = [
            drive(writer, given.rate, given.seconds, given.durable, start + index / len(writers) / given.rate)
            for index, writer in enumerate(writers)
        ]
        await asyncio.gather(*steps)
        await asyncio.gather(*(writer.flush() for writer in writers))
    await asyncio.sleep(0.5)
    for writer in writers:
        await writer.close()
    await bus.close()
    await database.close()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
