"""Makes reports: reads the log in pages, has it rendered, stores the document. A report is its own job.

Whoever has a report's lease makes it. A worker that is lost loses the lease too, and another one begins anew; the end
is written under the lease, with the document, in one transaction: a report is finished once.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, timedelta
from pathlib import Path
from uuid import UUID

import structlog

from agentrpc import clock
from agentrpc.domain.states import TERMINAL_RUN_STATES
from agentrpc.errors import StoreUnavailable
from agentrpc.names import parse_execution, parse_run, parse_session, parse_user, run_name, session_name, user_name
from agentrpc.reports.bounded import clip
from agentrpc.reports.collect import Collector, tokens_of
from agentrpc.reports.document import Document, Share, Tokens
from agentrpc.reports.render import RenderError
from agentrpc.reports.rendering import Limits, rendered
from agentrpc.reports.usage import UsageCollector, UsedRun
from agentrpc.services.views import head_state, run_message
from agentrpc.settings import Settings
from agentrpc.store.database import Database, Transaction
from agentrpc.store.log import StoredEvent, read_events
from agentrpc.store.reports import (
    CHUNK,
    ReportRow,
    add_chunk,
    claim_report,
    finish_report,
    give_up_report,
    keep_report,
)
from agentrpc.store.runs import RunQuery, find_runs
from agentrpc.store.tables import Run, Session, SessionHead
from agentrpc.store.tasks import ExecutionRow, TaskRow
from agentrpc.store.usage import UsageQuery, UsedShare, used_by_owner, used_by_session, used_runs
from agentrpc.store.users import usernames
from agentrpc.v1 import event_pb2, report_pb2

__all__ = ["ReportMaker"]

log = structlog.get_logger()

_ATTEMPTS = 3
_SIZE = 64 * 1024 * 1024
# Events have up to 256 KiB each, prompts up to 1 MiB: this is what is in memory at once.
_EVENTS = 100
_RUNS = 20
_USED = 500
_SHARES = 50
_BEAT = 0.5
_READ, _RENDERED = 80, 95


@dataclass(slots=True)
class _Progress:
    percent: int = 0


class ReportMaker:
    """Makes reports, one after the other. Any number of processes may.

    Args:
        database: The store.
        settings: The lease's time, and what rendering may use.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._ttl = settings.lease_ttl
        self._folder = settings.data_dir / "reports"
        self._limits = Limits(settings.report_memory, settings.report_timeout, _SIZE)

    async def drain(self) -> int:
        """Make all that are to be made; how many there were."""
        count = 0
        while await self._one():
            count += 1
        return count

    async def _one(self) -> bool:
        lease = clock.uuid7()
        report_id = await claim_report(self._database, lease, self._ttl)
        if report_id is None:
            return False
        progress = _Progress()
        making = asyncio.create_task(self._make(report_id, lease, progress), name="report")
        keeping = asyncio.create_task(self._keep(report_id, lease, progress), name="report-lease")
        try:
            await asyncio.wait({making, keeping}, return_when=asyncio.FIRST_COMPLETED)
            if making.done():
                making.result()
        except (asyncio.CancelledError, StoreUnavailable):
            # Not this report's fault: another process makes it, or this one later.
            await _ended(making)
            with suppress(StoreUnavailable):
                await give_up_report(self._database, report_id, lease)
            raise
        finally:
            await _ended(making, keeping)
        return True

    async def _keep(self, report_id: UUID, lease: UUID, progress: _Progress) -> None:
        """Hold the lease and tell the progress. Ends when the lease is lost."""
        told, since = -1, clock.monotonic()
        while True:
            if progress.percent != told or clock.monotonic() - since > self._ttl / 3:
                told, since = progress.percent, clock.monotonic()
                with suppress(StoreUnavailable):
                    if not await keep_report(self._database, report_id, lease, self._ttl, told):
                        log.info("report_lease_lost", report=str(report_id))
                        return
            await asyncio.sleep(min(_BEAT, self._ttl / 3))

    async def _make(self, report_id: UUID, lease: UUID, progress: _Progress) -> None:
        async with self._database.transaction() as tx:
            row = await tx.get(ReportRow, report_id)
        if row is None or row.lease != lease:
            return
        try:
            if row.attempt > _ATTEMPTS:
                raise RenderError(
                    "INTERNAL", f"{_ATTEMPTS} workers were lost while they made it: try a smaller subject"
                )
            given = report_pb2.Report.FromString(row.given)
            document = await self._document(row, given, progress)
            progress.percent = _READ
            async with rendered(document, row.format, given.template, self._limits, self._folder) as path:
                progress.percent = _RENDERED
                await self._store(report_id, lease, path)
        except RenderError as error:
            await self._fail(report_id, lease, error.reason, str(error))
        except StoreUnavailable:
            raise
        except Exception:
            log.exception("report_failed", report=str(report_id))
            await self._fail(report_id, lease, "INTERNAL", "the report could not be made; the worker's log says more")

    async def _store(self, report_id: UUID, lease: UUID, path: Path) -> None:
        size, digest = await asyncio.to_thread(_measure, path)
        with await asyncio.to_thread(path.open, "rb") as file:
            async with self._database.transaction() as tx:
                if not await finish_report(tx, report_id, lease, size=size, sha256=digest):
                    return
                position = 0
                while data := await asyncio.to_thread(file.read, CHUNK):
                    await add_chunk(tx, report_id, position, data)
                    position += 1

    async def _fail(self, report_id: UUID, lease: UUID, reason: str, message: str) -> None:
        error = report_pb2.ReportError(reason=f"REASON_{reason}", message=message)
        async with self._database.transaction() as tx:
            await finish_report(tx, report_id, lease, error=error.SerializeToString())

    # ---- What a report is about ----

    async def _document(self, row: ReportRow, given: report_pb2.Report, progress: _Progress) -> Document:
        if given.HasField("usage"):
            return await self._of_usage(row, given.usage)
        if given.subject.startswith("tasks/"):
            return await self._of_execution(row, *parse_execution(given.subject), progress)
        if "/runs/" in given.subject:
            return await self._of_run(row, *parse_run(given.subject), progress)
        return await self._of_session(row, parse_session(given.subject), progress)

    async def _of_execution(self, row: ReportRow, task_id: UUID, execution_id: UUID, progress: _Progress) -> Document:
        async with self._database.transaction() as tx:
            task, execution = await tx.get(TaskRow, task_id), await tx.get(ExecutionRow, execution_id)
        if task is None or execution is None or execution.session_id is None or execution.run_id is None:
            raise _gone(row.subject)
        return await self._of_run(row, execution.session_id, execution.run_id, progress, task.display_name)

    async def _of_run(
        self, row: ReportRow, session_id: UUID, run_id: UUID, progress: _Progress, default_title: str = ""
    ) -> Document:
        async with self._database.transaction() as tx:
            session, head = await _session(tx, session_id)
            run = await tx.get(Run, run_id)
        if run is None:
            raise _gone(row.subject)
        title = row.display_name or default_title or clip(run.prompt, 90)
        complete = run.state in TERMINAL_RUN_STATES
        collector = Collector("run", title, run_name(session.id, run.id), run.state, complete=complete)
        collector.add_run(run_message(run))
        if run.first_sequence:
            last = run.last_sequence if complete else head.last_sequence
            await self._read(collector, session_id, run.first_sequence - 1, last, run_id, progress)
        return await self._finished(collector)

    async def _of_session(self, row: ReportRow, session_id: UUID, progress: _Progress) -> Document:
        async with self._database.transaction() as tx:
            session, head = await _session(tx, session_id)
        name = session_name(session_id)
        title = row.display_name or session.display_name or f"Session of {session.create_time:%-d %B %Y}"
        idle = head.active_run is None and not head.queued
        collector = Collector("session", clip(title, 200), name, str(head_state(head)), complete=idle)
        collector.describe(session.description)
        after: UUID | None = None
        while True:
            query = RunQuery(session_id=session_id, descending=False, after=after, limit=_RUNS)
            async with self._database.transaction() as tx:
                runs = [run for run, _ in await find_runs(tx, query)]
            for run in runs:
                collector.add_run(run_message(run))
            if len(runs) < _RUNS:
                break
            after = runs[-1].id
        await self._read(collector, session_id, 0, head.last_sequence, None, progress)
        return await self._finished(collector)

    async def _read(
        self, collector: Collector, session_id: UUID, first: int, last: int, run_id: UUID | None, progress: _Progress
    ) -> None:
        """Events behind `first` up to `last`, as the log was when the report was begun."""
        after = first
        while after < last:
            rows = await read_events(self._database, session_id, after=after, up_to=last, run_id=run_id, limit=_EVENTS)
            # Apart from the loop, on which agents are hosted.
            await asyncio.to_thread(_take, collector, rows)
            if len(rows) < _EVENTS:
                return
            after = rows[-1].sequence
            progress.percent = _READ * (after - first) // (last - first)

    async def _finished(self, collector: Collector) -> Document:
        """The document, with people by their names."""
        document = collector.document()
        known = await self._people([entry.resolver for entry in document.approvals if entry.resolver])
        for entry in document.approvals:
            entry.resolver = known.get(entry.resolver, entry.resolver)
        return document

    async def _of_usage(self, row: ReportRow, usage: report_pb2.UsagePeriod) -> Document:
        begin, end = usage.start_time.ToDatetime(UTC), usage.end_time.ToDatetime(UTC)
        query = UsageQuery(begin, end, row.usage_owner)
        subject = user_name(row.usage_owner) if row.usage_owner is not None else "all users"
        known = await self._people([subject] if row.usage_owner is not None else [])
        title = row.display_name or f"Usage of {known.get(subject, subject)}"
        collector = UsageCollector(title, subject, begin, end, complete=end <= clock.utcnow())
        after: UUID | None = None
        while True:
            rows = await used_runs(self._database, query, after, _USED)
            for used in rows:
                ended = event_pb2.RunEnded.FromString(used.usage or b"")
                took = used.end_time - used.start_time if used.end_time and used.start_time else timedelta(0)
                models = tuple((entry.model, tokens_of(entry.usage)) for entry in ended.model_usage)
                collector.add(
                    UsedRun(used.create_time, used.state, tokens_of(ended.usage), models, took.total_seconds())
                )
            if len(rows) < _USED:
                break
            after = rows[-1].id
        sessions, session_count = await used_by_session(self._database, query, _SHARES)
        owners: list[UsedShare] = []
        owner_count = 0
        if row.usage_owner is None:
            owners, owner_count = await used_by_owner(self._database, query, _SHARES)
        left_out = {"sessions": session_count - len(sessions), "owners": owner_count - len(owners)}
        return collector.document(
            [_share(share, session_name(share.id)) for share in sessions],
            [_share(share, user_name(share.id)) for share in owners],
            left_out,
        )

    async def _people(self, names: Sequence[str]) -> Mapping[str, str]:
        """User names by `users/{user}`."""
        ids = {name: parse_user(name) for name in dict.fromkeys(names)}
        if not ids:
            return {}
        async with self._database.transaction() as tx:
            known = await usernames(tx, list(ids.values()))
        return {name: known[user_id] for name, user_id in ids.items() if user_id in known}


def _take(collector: Collector, rows: Sequence[StoredEvent]) -> None:
    for stored in rows:
        collector.add(event_pb2.Event.FromString(stored.data))


async def _session(tx: Transaction, session_id: UUID) -> tuple[Session, SessionHead]:
    session = await tx.get(Session, session_id)
    if session is None or session.delete_time is not None:
        raise _gone(session_name(session_id))
    return session, await tx.get_one(SessionHead, session_id)


def _gone(name: str) -> RenderError:
    return RenderError("SUBJECT_GONE", f"{name} was deleted before the report was made")


def _share(share: UsedShare, name: str) -> Share:
    return Share(share.label or name, name, share.runs, share.failed, Tokens(cost_usd=round(share.cost_usd, 8)))


def _measure(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


async def _ended(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
