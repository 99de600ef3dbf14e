"""relay, hop, append: a run's way from the CLI into the log and to one client."""

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from agentrpc import clock
from agentrpc.client import AgentRpcClient
from agentrpc.embedded.scripted_model import ScriptedModel
from agentrpc.embedded.servers import EmbeddedPostgres
from agentrpc.store.database import Database
from agentrpc.store.log import Batch, LogEvent
from agentrpc.store.log import append as append_batch
from agentrpc.store.schema import migrate
from agentrpc.store.tables import Session, SessionHead, User
from agentrpc.v1 import event_pb2, run_pb2
from scripts.benches.frame import Figure, Outcome, quantile, running

_DELTAS = 20_000
_PROMPT = f"[[deltas: {_DELTAS}]]"
_WARM = 10


async def _direct() -> float:
    """Deltas a second of the SDK alone, as its users consume it, once it is warm."""
    from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, ResultMessage, StreamEvent

    async with ScriptedModel() as model:
        with tempfile.TemporaryDirectory(prefix="agentrpc-sdk-") as folder:
            options = ClaudeAgentOptions(
                cwd=folder,
                env={"ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_AUTH_TOKEN": "x", "CLAUDE_CONFIG_DIR": folder,
                     "HOME": folder, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"},
                include_partial_messages=True, setting_sources=[], max_buffer_size=64 * 1024 * 1024,
                model="claude-sonnet-5",
            )  # fmt: skip
            async with ClaudeSDKClient(options) as client:
                rate = 0.0
                for prompt in ("[[text: warm]]", _PROMPT):
                    await client.query(prompt)
                    count, first, last = 0, 0.0, 0.0
                    async for message in client.receive_messages():
                        if isinstance(message, StreamEvent) and message.event["type"] == "content_block_delta":
                            last = time.monotonic()
                            first = first or last
                            count += 1
                        elif isinstance(message, ResultMessage):
                            break
                    rate = count / (last - first) if last > first else 0.0
                return rate


async def _relayed(client: AgentRpcClient, session: str) -> tuple[float, list[float]]:
    first = last = 0.0
    size = 0
    lags = []
    async for event in client.run(session, _PROMPT, include_deltas=True):
        if event.HasField("text_delta"):
            last = time.monotonic()
            first = first or last
            size += len(event.text_delta.text)
            lags.append(time.time() - (event.time.seconds + event.time.nanos / 1e9))
    # Merged on the way: counted by what the source sent, pieces of four characters.
    return size / 4 / (last - first), lags


async def relay() -> Outcome:
    async with running() as stack, stack.client() as client:
        session = (await client.create_session()).name
        async for _ in client.run(session, "[[text: warm]]"):
            pass
        rate, lags = await _relayed(client, session)
    direct = await _direct()
    return Outcome(
        [
            Figure("delivered deltas against the SDK alone", rate / direct, "x", 0.8, "more"),
            Figure("newest-event lag, p50", quantile(lags, 0.5) * 1000, "ms", 3),
            Figure("delivered deltas", rate, "deltas/s"),
        ],
        {"SDK deltas/s": direct},
    )


async def hop() -> Outcome:
    # The claim is measured, not the CLI's start: one that ends at once makes room for the next.
    async with running(AGENTRPC_CLI_PATH="/bin/false") as stack, stack.client() as client:
        waits = []
        for _ in range(_WARM + 150):
            session = (await client.create_session()).name
            run = await client.create_run(session, "x")
            answered = time.time()
            while True:
                # Before the first question too: it would compete with the claim for the same cores.
                await asyncio.sleep(0.02)
                found = await client.get_run(run.name)
                if found.state not in (run_pb2.Run.STATE_QUEUED, run_pb2.Run.STATE_RUNNING):
                    break
            started = found.start_time.seconds + found.start_time.nanos / 1e9
            waits.append(max(started - answered, 0.0) * 1000)
    waits = waits[_WARM:]
    return Outcome(
        [
            Figure("CreateRun answered to claimed, p50", quantile(waits, 0.5), "ms", 5),
            Figure("CreateRun answered to claimed, p99", quantile(waits, 0.99), "ms", 15),
        ],
        {},
    )


async def _session(database: Database) -> UUID:
    user, session = clock.uuid7(), clock.uuid7()
    now = clock.utcnow()
    async with database.transaction() as tx:
        tx.add(User(id=user, username=str(user), password_hash="", role="USER", create_time=now))
        await tx.flush()
        tx.add(
            Session(id=session, owner=user, display_name="", description="", labels={}, options=b"",
                    claude_session_id=uuid4(), usage=b"", create_time=now, update_time=now)
        )  # fmt: skip
        await tx.flush()
        tx.add(SessionHead(session_id=session, tenant=user, epoch=1))
    return session


async def append() -> Outcome:
    """Ours and COPY in turns, so that a new WAL segment, a checkpoint or a busy neighbour meets both alike."""
    event = LogEvent.of(event_pb2.Event(notice=event_pb2.Notice(text="x" * 260)), clock.uuid7())

    async def ours(session: UUID, size: int, batches: int) -> float:
        batch = Batch(events=[event] * size)
        began = time.perf_counter()
        for number in range(1, batches + 1):
            await append_batch(database, session, 1, number, batch)
        return time.perf_counter() - began

    async def copy(session: UUID, size: int, batches: int) -> float:
        async with database.connection() as connection:
            began = time.perf_counter()
            for number in range(batches):
                rows = [
                    (session, number * size + index + 1, event.run_id, event.kind, event.data) for index in range(size)
                ]
                await connection.copy_records_to_table("session_events", records=rows)
            return time.perf_counter() - began

    figures, baseline = [], {}
    with tempfile.TemporaryDirectory(prefix="agentrpc-bench-") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101 - the server's own user must pass
        server = EmbeddedPostgres(Path(folder) / "pg")
        url = await asyncio.to_thread(server.start)
        await asyncio.to_thread(migrate, url)
        database = Database(url, pool_size=2)
        for size, batches in ((50, 100), (500, 20)):
            for way in (ours, copy):
                await way(await _session(database), size, 10)
            spent: dict[Any, list[float]] = {ours: [], copy: []}
            for number in range(15):
                for way in (ours, copy) if number % 2 else (copy, ours):
                    spent[way].append(await way(await _session(database), size, batches))
            ratio = statistics.median(theirs / mine for mine, theirs in zip(spent[ours], spent[copy], strict=True))
            figures.append(Figure(f"durable events against COPY, batches of {size}", ratio, "x", 0.8, "more"))
            rate = size * batches / statistics.median(spent[ours])
            figures.append(Figure(f"durable events, batches of {size}", rate, "events/s"))
            baseline[f"COPY rows/s, batches of {size}"] = size * batches / statistics.median(spent[copy])
        await database.close()
        await asyncio.to_thread(server.stop)
    return Outcome(figures, baseline)
