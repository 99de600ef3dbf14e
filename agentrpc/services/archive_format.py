"""The object that holds a session: a tar.gz that any tool can open.

    events/000001.jsonl …       rows of the log: sequence, run, kind, data (base64 of the event as it is stored)
    transcript/000001.jsonl …   lines of the CLI's transcript: position, subpath, data (base64)
    workspace/…                 the files, if there was a workspace

It is written and read in pieces; neither a long log nor a big file is ever in memory as a whole.
"""

import base64
import hashlib
import json
import tarfile
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from typing import BinaryIO, NamedTuple, TypeVar
from uuid import UUID

from agentrpc.claude.workspace_archives import take, tar_blocks, tar_end, tar_member
from agentrpc.services.threads import in_thread
from agentrpc.store.archives import EventRow, TranscriptRow, read_event_rows, read_transcript_rows
from agentrpc.store.database import Database

__all__ = ["EVENTS", "FORMAT", "TRANSCRIPT", "WORKSPACE", "ArchiveWriter", "read_events", "read_transcript"]

FORMAT = 1
EVENTS, TRANSCRIPT, WORKSPACE = "events/", "transcript/", "workspace/"

_ROWS = 500
# A row of the log has at most some 256 KiB.
_PART_BYTES = 4 * 1024 * 1024
_OUT = 1024 * 1024
_GZIP = 16 + zlib.MAX_WBITS

_Row = TypeVar("_Row", bound=NamedTuple)


class ArchiveWriter:
    """Writes one.

    Args:
        database: The store.
        session_id: The session, at rest.
        folder: A descriptor of its workspace; None: it has none.

    Attributes:
        size: Bytes so far.
        event_count: Events so far.
        line_count: Transcript lines so far.
    """

    def __init__(self, database: Database, session_id: UUID, folder: int | None) -> None:
        self._database = database
        self._session_id = session_id
        self._folder = folder
        self._packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
        self._digest = hashlib.sha256()
        self.size = 0
        self.event_count = 0
        self.line_count = 0

    @property
    def sha256(self) -> str:
        """Of what has been written."""
        return self._digest.hexdigest()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The object. Raises WorkspaceError, Aborted when a file shrinks meanwhile, OSError."""
        held = bytearray()
        async for block in self._blocks():
            held += await in_thread(self._packer.compress, block)
            if len(held) >= _OUT:
                yield self._count(bytes(held))
                held.clear()
        yield self._count(bytes(held) + await in_thread(self._packer.flush))

    def _count(self, data: bytes) -> bytes:
        self._digest.update(data)
        self.size += len(data)
        return data

    async def _blocks(self) -> AsyncIterator[bytes]:
        async for name, events in _parts(EVENTS, self._events, _event_line):
            self.event_count += events.count(b"\n")
            yield await in_thread(tar_member, name, events)
        async for name, lines in _parts(TRANSCRIPT, self._lines, _transcript_line):
            self.line_count += lines.count(b"\n")
            yield await in_thread(tar_member, name, lines)
        if self._folder is not None:
            with closing(tar_blocks(self._folder, WORKSPACE)) as blocks:
                ended = False
                while not ended:
                    data, ended = await in_thread(take, blocks)
                    yield data
        yield tar_end()

    async def _events(self, after: int) -> list[EventRow]:
        return await read_event_rows(self._database, self._session_id, after, _ROWS)

    async def _lines(self, after: int) -> list[TranscriptRow]:
        return await read_transcript_rows(self._database, self._session_id, after, _ROWS)


async def _parts(
    prefix: str, read: Callable[[int], Awaitable[Sequence[_Row]]], line: Callable[[_Row], bytes]
) -> AsyncIterator[tuple[str, bytes]]:
    """Rows as JSON lines, in members of some megabytes."""
    number, after, held = 0, 0, bytearray()
    while rows := await read(after):
        after = rows[-1][0]
        for row in rows:
            held += line(row)
            if len(held) >= _PART_BYTES:
                number += 1
                yield f"{prefix}{number:06}.jsonl", bytes(held)
                held.clear()
    if held:
        yield f"{prefix}{number + 1:06}.jsonl", bytes(held)


def _event_line(row: EventRow) -> bytes:
    run = str(row.run_id) if row.run_id else None
    data = base64.b64encode(row.data).decode()
    return json.dumps({"sequence": row.sequence, "run": run, "kind": row.kind, "data": data}).encode() + b"\n"


def _transcript_line(row: TranscriptRow) -> bytes:
    data = base64.b64encode(row.data).decode()
    return json.dumps({"position": row.position, "subpath": row.subpath, "data": data}).encode() + b"\n"


# ---- Reading ----


def read_events(tar: BinaryIO) -> Iterator[list[EventRow]]:
    """The events of an object that is unpacked to a tar, in pieces."""
    for lines in _members(tar, EVENTS):
        found = map(json.loads, lines)
        yield [
            EventRow(row["sequence"], UUID(row["run"]) if row["run"] else None, row["kind"], _bytes(row["data"]))
            for row in found
        ]


def read_transcript(tar: BinaryIO) -> Iterator[list[TranscriptRow]]:
    """The transcript, as `read_events`."""
    for lines in _members(tar, TRANSCRIPT):
        found = map(json.loads, lines)
        yield [TranscriptRow(row["position"], row["subpath"], _bytes(row["data"])) for row in found]


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _members(file: BinaryIO, prefix: str) -> Iterator[list[bytes]]:
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep all that it has seen
            # Events and transcript come first.
            if member.name.startswith(WORKSPACE):
                return
            if member.name.startswith(prefix) and (content := tar.extractfile(member)) is not None:
                yield content.read().splitlines()
