"""Archive storage: what callers ask for, when it is time for it, and the work itself.

Storing writes the object, reads it back, and only then, in the one transaction that says so, removes the rows here;
the files go after that. Restoring reads the object, compares its checksum, and puts everything back in one transaction.
Each attempt writes an object of its own: one that was cut short is never taken for another. So either may be killed at
any point and is done again by whoever finds its lease expired.
"""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import UUID

import structlog

from agentrpc import clock
from agentrpc.claude.workspace_archives import IncomingArchive, unpack
from agentrpc.claude.workspace_lists import look_at_tree
from agentrpc.claude.workspaces import WorkspaceError, WorkspaceStore
from agentrpc.domain.principal import Principal
from agentrpc.errors import AgentRpcError, FailedPrecondition, NotFound, StoreUnavailable
from agentrpc.names import archive_name, parse_session
from agentrpc.services.access import require_write
from agentrpc.services.archive_format import FORMAT, WORKSPACE, ArchiveWriter, read_events, read_transcript
from agentrpc.services.sessions import load_session
from agentrpc.services.signals import Doorbell
from agentrpc.services.threads import in_thread, while_wanted
from agentrpc.services.views import archive_message
from agentrpc.settings import Settings
from agentrpc.store.archives import (
    ArchiveJob,
    ArchiveLeaseLost,
    ArchiveRow,
    archives_of,
    drop_log,
    enqueue_due,
    held_archive,
    insert_events,
    insert_transcript,
    note_failure,
    renew_archive,
    take_archive,
)
from agentrpc.store.database import Database, Transaction
from agentrpc.store.leases import lock_head
from agentrpc.store.objects import ObjectError, Objects
from agentrpc.store.tables import SessionHead
from agentrpc.v1 import archive_pb2

__all__ = ["JOB", "Archives"]

log = structlog.get_logger()

_LEASE = 60.0
_MAX_ATTEMPTS = 10
_LONGEST_WAIT = 1800.0
_SCHEDULE_INTERVAL = 30.0
_EVERYTHING = 2**62
# How many times the space that they take files may be long, once they are longer than an uploaded workspace may be.
_MAX_HOLES = 4

JOB = "archives"


class Archives:
    """The use cases, and the job.

    Args:
        database: The store.
        settings: Where archive storage is.
        doorbell: Is rung when there may be a job.
    """

    def __init__(self, database: Database, settings: Settings, doorbell: Doorbell | None = None) -> None:
        self._database = database
        self._doorbell = doorbell
        self._settings = settings
        self._store = WorkspaceStore(
            settings.workspaces,
            checkpoint_limit=settings.checkpoint_limit,
            checkpoints_kept=settings.checkpoints_kept,
        )
        self._opened: Objects | None = None

    # ---- What callers ask for ----

    async def get(self, principal: Principal, session_id: UUID) -> archive_pb2.Archive:
        """GetArchive."""
        async with self._database.transaction() as tx:
            await load_session(tx, principal, session_id)
            row = (await archives_of(tx, [session_id])).get(session_id)
            if row is None:
                raise NotFound("Archive", archive_name(session_id))
            return archive_message(row)

    async def store(self, principal: Principal, name: str) -> archive_pb2.Archive:
        """StoreSession."""
        session_id = parse_session(name)
        require_write(principal, "archives.store")
        self._require_storage()
        async with self._database.transaction() as tx:
            head, row = await _lock(tx, principal, session_id)
            if head.closed != "ARCHIVED" or head.active_run is not None or head.queued:
                raise _state_invalid("only a session that is archived can be stored: ArchiveSession first", "")
            if row is None:
                row = ArchiveRow(session_id=session_id, state="STORING")
                tx.add(row)
            elif row.state == "RESTORING":
                raise _state_invalid("the session is being restored: wait until it is", row.state)
            elif row.state in {"RESTORED", "FAILED"}:
                _begin(row, "STORING")
            message = await _stored(tx, row)
        await self._ring()
        return message

    async def restore(self, principal: Principal, name: str) -> archive_pb2.Archive:
        """RestoreSession."""
        session_id = parse_session(name)
        require_write(principal, "archives.restore")
        self._require_storage()
        async with self._database.transaction() as tx:
            _, row = await _lock(tx, principal, session_id)
            if row is None or row.object is None:
                raise _state_invalid("the session is not in archive storage: there is nothing to bring back", "")
            if row.state in {"STORING", "FAILED"}:
                raise _state_invalid("the session is here: there is nothing to bring back", row.state)
            if row.state == "STORED":
                _begin(row, "RESTORING")
            message = await _stored(tx, row)
        await self._ring()
        return message

    async def _ring(self) -> None:
        if self._doorbell is not None:
            await self._doorbell.ring_job(JOB)

    def _require_storage(self) -> None:
        if self._settings.archive_url is None:
            raise FailedPrecondition(
                "there is no archive storage: its operator has to set AGENTRPC_ARCHIVE_URL",
                reason="NOT_CONFIGURED",
                metadata={"setting": "AGENTRPC_ARCHIVE_URL"},
            )

    # ---- When it is time ----

    async def schedule(self) -> None:
        """Have sessions stored that were archived long enough ago, until cancelled."""
        while self._settings.archive_after is not None:
            try:
                while await enqueue_due(self._database, timedelta(seconds=self._settings.archive_after)):
                    pass
            except AgentRpcError as error:
                log.warning("archives_paused", reason=error.reason)
            except Exception:
                log.exception("archives_failed")
            wait = min(_SCHEDULE_INTERVAL, self._settings.archive_after)
            await asyncio.sleep(clock.jitter(wait, 0.2))

    # ---- The work ----

    async def drain(self) -> int:
        """Do one job that is due; how many that were."""
        if self._settings.archive_url is None:
            return 0
        job = await take_archive(self._database, _LEASE)
        if job is None:
            return 0
        work = {"STORING": self._write, "RESTORING": self._bring_back}.get(job.state, self._remove_files)
        try:
            async with self._keeping(job):
                await work(job)
        except ArchiveLeaseLost:
            log.info("archive_given_up", session=str(job.session_id))
        except asyncio.CancelledError:
            # The worker ends: another one goes on at once.
            with suppress(StoreUnavailable):
                await asyncio.shield(self._give_back(job, "", 0.0, _MAX_ATTEMPTS + job.attempts))
            raise
        except (ObjectError, WorkspaceError, AgentRpcError, OSError) as error:
            log.warning("archive_failed", session=str(job.session_id), state=job.state, error=repr(error))
            told = str(error) if not isinstance(error, OSError) else os.strerror(error.errno or 0)
            await self._give_back(job, told[:500], min(_LONGEST_WAIT, 2.0**job.attempts), _MAX_ATTEMPTS)
        except Exception:
            log.exception("archive_failed", session=str(job.session_id), state=job.state)
            await self._give_back(job, "a fault of the service", _LONGEST_WAIT, _MAX_ATTEMPTS)
        return 1

    async def _give_back(self, job: ArchiveJob, error: str, wait: float, most: int) -> None:
        await note_failure(self._database, job, error, wait, most)

    @asynccontextmanager
    async def _keeping(self, job: ArchiveJob) -> AsyncIterator[None]:
        """Keep the lease; once it is lost, or cannot be kept in time, the work is cut."""
        task = asyncio.current_task()
        assert task is not None
        lost = False

        async def keep() -> None:
            nonlocal lost
            kept = clock.monotonic()
            while True:
                await asyncio.sleep(_LEASE / 4)
                with suppress(AgentRpcError):
                    if not await renew_archive(self._database, job, _LEASE):
                        break
                    kept = clock.monotonic()
                if clock.monotonic() - kept > _LEASE * 0.75:
                    break
            lost = True
            task.cancel()

        keeper = asyncio.create_task(keep(), name="archive-lease")
        try:
            yield
        except asyncio.CancelledError:
            if lost and task.uncancel() == 0:
                raise ArchiveLeaseLost from None
            raise
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _objects(self) -> Objects:
        if self._opened is None:
            self._opened = await in_thread(Objects, self._settings)
        return self._opened

    async def _write(self, job: ArchiveJob) -> None:
        objects = await self._objects()
        async with self._database.transaction() as tx:
            session, head, _ = await held_archive(tx, job)
            has_files = session.workspace_time is not None and session.clean_time is None
            last_sequence = head.last_sequence
        key = f"{job.session_id}/{clock.uuid7()}.tar.gz"
        folder = await in_thread(self._store.find, job.session_id) if has_files else None
        try:
            look = await while_wanted(partial(look_at_tree, folder)) if folder is not None else None
            if look is not None and look.size > max(self._settings.max_workspace_size, _MAX_HOLES * look.space):
                # An object would hold the holes as zeros, and a restored session would have them on the disk.
                raise WorkspaceError(
                    f"the files have {look.size} bytes, and nearly all of them are holes: delete, or fill, sparse files"
                )
            writer = ArchiveWriter(self._database, job.session_id, folder)
            await objects.put(key, writer.chunks())
        finally:
            if folder is not None:
                os.close(folder)
        async for _ in _verified(objects.get(key), writer.size, writer.sha256):
            pass
        manifest = {
            "format": FORMAT,
            "session": str(job.session_id),
            "object": key,
            "size": writer.size,
            "sha256": writer.sha256,
            "last_sequence": last_sequence,
            "events": writer.event_count,
            "transcript_lines": writer.line_count,
            "workspace": None if look is None else {"files": look.file_count, "bytes": look.size},
        }
        await objects.put_bytes(key.replace(".tar.gz", ".json"), json.dumps(manifest, indent=2).encode())
        # What earlier attempts have left, and an archive before this one. They are listed while the lease is held, as
        # the commit proves: whatever is written later, by whoever has the job next, is none of them.
        stem = key.removesuffix(".tar.gz")
        others = [one for one in await objects.keys(f"{job.session_id}/") if not one.startswith(stem)]
        async with self._database.transaction() as tx:
            _, _, row = await held_archive(tx, job)
            row.object, row.size, row.sha256 = key, writer.size, writer.sha256
            row.event_count, row.file_count = writer.event_count, look.file_count if look is not None else 0
            row.has_workspace = look is not None
            row.store_time = clock.utcnow()
            row.state, row.error = "STORED", ""
            if self._settings.archive_drop:
                await drop_log(tx, job.session_id)
                row.dropped = True
                row.files_left = look is not None
            if not row.files_left:
                row.lease = row.lease_expire_time = None
        await objects.delete(others)
        if self._settings.archive_drop and look is not None:
            await self._remove_files(job)

    async def _remove_files(self, job: ArchiveJob) -> None:
        """Remove the workspace of a session that is stored."""
        async with self._database.transaction() as tx:
            # It is taken away while nobody can restore the session: whoever comes late leaves what was brought back.
            await held_archive(tx, job)
            await in_thread(self._store.set_aside, job.session_id)
        await in_thread(self._store.remove_aside, job.session_id)
        async with self._database.transaction() as tx:
            session, _, row = await held_archive(tx, job)
            session.clean_time = clock.utcnow()
            row.files_left = False
            row.lease = row.lease_expire_time = None

    async def _bring_back(self, job: ArchiveJob) -> None:
        objects = await self._objects()
        beside = self._store.incoming(job.session_id)
        await in_thread(beside.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
        incoming = await in_thread(lambda: IncomingArchive(beside, _EVERYTHING, _EVERYTHING))
        fresh: Path | None = None
        try:
            # All of it is compared before anything is made of it.
            async for _ in _verified(objects.get(job.key), job.size, job.sha256):
                pass
            async for data in objects.get(job.key):
                await in_thread(incoming.write, data)
            incoming.finish()
            if job.has_workspace:
                fresh = await in_thread(self._store.make_fresh, job.session_id)
                await while_wanted(partial(_unpack_files, incoming.path, fresh))
            async with self._database.transaction() as tx:
                session, _, row = await held_archive(tx, job)
                if row.dropped:
                    await drop_log(tx, job.session_id)
                    await _insert_log(tx, job.session_id, incoming.path)
                if fresh is not None:
                    await in_thread(self._store.replace, job.session_id, fresh)
                    session.clean_time = None
                row.state, row.error = "RESTORED", ""
                row.dropped = row.files_left = False
                row.restore_time = clock.utcnow()
                row.lease = row.lease_expire_time = None
        finally:
            await in_thread(incoming.close)
            if fresh is not None:
                await in_thread(self._store.discard, fresh)
            if not job.has_workspace:
                await in_thread(self._store.remove, job.session_id)


async def _lock(tx: Transaction, principal: Principal, session_id: UUID) -> tuple[SessionHead, ArchiveRow | None]:
    head = await lock_head(tx, session_id)
    await load_session(tx, principal, session_id)
    assert head is not None
    return head, (await archives_of(tx, [session_id])).get(session_id)


def _begin(row: ArchiveRow, state: str) -> None:
    """The lease stays: what removes files here ends before anything is brought back."""
    row.state = state
    row.attempts = 0
    row.error = ""
    row.due_time = clock.utcnow()


async def _stored(tx: Transaction, row: ArchiveRow) -> archive_pb2.Archive:
    await tx.flush()
    await tx.refresh(row)
    return archive_message(row)


async def _verified(chunks: AsyncIterator[bytes], size: int, sha256: str) -> AsyncIterator[bytes]:
    """The chunks of an object. Raises ObjectError at its end if it is not what was written."""
    digest, read = hashlib.sha256(), 0
    async for chunk in chunks:
        await in_thread(digest.update, chunk)
        read += len(chunk)
        yield chunk
    if read != size or digest.hexdigest() != sha256:
        raise ObjectError("the object in archive storage is not what was written: its checksum is another one")


def _unpack_files(tar: Path, fresh: Path, wanted: Callable[[], bool]) -> None:
    with tar.open("rb") as file:
        unpack(file, fresh, max_members=_EVERYTHING, room=_EVERYTHING, wanted=wanted, prefix=WORKSPACE, ours=True)


async def _insert_log(tx: Transaction, session_id: UUID, path: Path) -> None:
    file = await in_thread(path.open, "rb")
    try:
        events = read_events(file)
        while (rows := await in_thread(next, events, None)) is not None:
            await insert_events(tx, session_id, rows)
        lines = read_transcript(file)
        while (some := await in_thread(next, lines, None)) is not None:
            await insert_transcript(tx, session_id, some)
    finally:
        file.close()


def _state_invalid(message: str, state: str) -> FailedPrecondition:
    return FailedPrecondition(message, reason="STATE_INVALID", metadata={"state": f"STATE_{state}" if state else ""})
