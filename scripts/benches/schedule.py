"""schedule: a thousand tasks due at one instant, two schedulers, one of them killed in the middle of it."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

from agentrpc import clock
from agentrpc.embedded.servers import EmbeddedPostgres, free_port, redis_binary
from agentrpc.store.schema import migrate
from agentrpc.v1 import task_pb2
from scripts.benches.frame import Figure, Outcome, quantile

_TASKS = 1000
_LOAD = "load of the machine before (1 min)"
# Starting takes a while: what is due before both are there would say nothing.
_LEAD = timedelta(seconds=8)


@contextlib.contextmanager
def _servers() -> Iterator[tuple[Path, str, str]]:
    """A PostgreSQL with the schema, and a Redis: the folder and the URLs."""
    with tempfile.TemporaryDirectory(prefix="agentrpc-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server's own user must pass
        server = EmbeddedPostgres(folder / "pg")
        url = server.start()
        migrate(url)
        port, binary = free_port(), redis_binary()
        assert binary is not None
        redis = subprocess.Popen(
            [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", name], stdout=subprocess.DEVNULL
        )
        try:
            yield folder, url, f"redis://127.0.0.1:{port}/0"
        finally:
            redis.kill()
            redis.wait()
            server.stop()


async def _add_tasks(store: asyncpg.Connection, slot: datetime) -> None:
    """Tasks of one user with crons of their own, all of which have a slot at this time."""
    user, now = clock.uuid7(), clock.utcnow()
    await store.execute(
        "INSERT INTO users (id, username, password_hash, role, create_time) VALUES ($1, 'bench', '', 'USER', $2)",
        user,
        now,
    )
    rows = []
    for number in range(_TASKS):
        crons = [f"{slot.minute} {slot.hour} * * *", f"{number % 60} {number % 24} 1 1 *"]
        spec = task_pb2.Task(display_name=f"task {number}", prompt_template="[[text: done]]")
        spec.schedule.crons.extend(crons)
        rows.append((clock.uuid7(), user, spec.display_name, spec.SerializeToString(), now, slot))
    await store.executemany(
        "INSERT INTO tasks (id, owner, display_name, description, labels, spec, tool_groups, shared, create_time,"
        " update_time, scheduled, next_slot_time) VALUES ($1, $2, $3, '', '{}', $4, '{}', false, $5, $5, true, $6)",
        rows,
    )


class _Watch:
    """Sees when slots are there for others: the count that each look finds, and when it was."""

    def __init__(self, store: asyncpg.Connection) -> None:
        self._store = store
        self.seen: list[tuple[datetime, int]] = []

    async def until(self, count: int, give_up: datetime) -> int:
        """Look until there are so many slots; how many there are."""
        while True:
            found: int = await self._store.fetchval("SELECT count(*) FROM slots")
            self.seen.append((clock.utcnow(), found))
            if found >= count or clock.utcnow() > give_up:
                return found
            await asyncio.sleep(0.005)

    def waits(self, slot: datetime) -> list[float]:
        """Milliseconds from the slot until each of them was seen."""
        waits: list[float] = []
        for time, found in self.seen:
            waits += [(time - slot).total_seconds() * 1000] * (found - len(waits))
        return waits


def _start(folder: Path, store_url: str, redis_url: str, number: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "AGENTRPC_DATABASE_URL": store_url,
        "AGENTRPC_REDIS_URL": redis_url,
        "AGENTRPC_DATA_DIR": str(folder / "data"),
        "AGENTRPC_SIGNING_KEY": "for the bench, and for nothing else",
        "AGENTRPC_METRICS_LISTEN": "",
    }
    with (folder / f"scheduler-{number}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "agentrpc", "scheduler"], env=environment, stderr=log, stdout=log
        )


async def schedule() -> Outcome:
    load = os.getloadavg()[0]
    with contextlib.ExitStack() as servers:
        folder, store_url, redis_url = await asyncio.to_thread(servers.enter_context, _servers())
        store = await asyncpg.connect(store_url)
        processes = [_start(folder, store_url, redis_url, number) for number in (1, 2)]
        try:
            # The coming minute, or the one after it.
            slot = (datetime.now(UTC) + _LEAD + timedelta(minutes=1)).replace(second=0, microsecond=0)
            await _add_tasks(store, slot)
            await asyncio.sleep(max((slot - clock.utcnow()).total_seconds() - 0.5, 0))
            watch = _Watch(store)
            give_up = slot + timedelta(seconds=60)
            half = await watch.until(_TASKS // 2, give_up)
            processes[0].send_signal(signal.SIGKILL)
            found = await watch.until(_TASKS, give_up)
            # One more minute of the other would find what is to be found twice.
            await asyncio.sleep(3)
            slots, tasks, executions = await store.fetchrow(
                "SELECT (SELECT count(*) FROM slots), (SELECT count(DISTINCT task_id) FROM slots),"
                " (SELECT count(*) FROM executions)"
            )
        finally:
            for process in processes:
                process.kill()
                process.wait()
            await store.close()
    waits = watch.waits(slot)
    return Outcome(
        [
            Figure("due instant to slot seen committed, p50", quantile(waits, 0.5), "ms"),
            Figure("due instant to slot seen committed, p99", quantile(waits, 0.99), "ms", 500),
            Figure("slots that were missed", _TASKS - tasks, "of 1,000", 0),
            Figure("slots that fired twice", max(slots - tasks, executions - tasks), "of 1,000", 0),
            Figure("slots there when one scheduler was killed", half, "of 1,000"),
            Figure("slots dealt with by the other", found - half, "of 1,000"),
        ],
        {_LOAD: load},
    )
