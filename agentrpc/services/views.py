"""Rows as messages of the contract."""

import hashlib
import os
import stat
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from agentrpc.claude.workspace_files import etag_of_file
from agentrpc.claude.workspace_lists import FileEntry
from agentrpc.claude.workspace_paths import shown
from agentrpc.domain.mcp_config import redacted
from agentrpc.domain.states import RunState, SessionState, session_state
from agentrpc.names import agent_version_name, approval_name, archive_name, run_name, session_name, user_name
from agentrpc.services.fields import etag_of
from agentrpc.services.waiting import driver, newest_time, waiting_on
from agentrpc.store.archives import ArchiveRow
from agentrpc.store.progress import Progress
from agentrpc.store.runs import LedgerRow
from agentrpc.store.tables import Approval, Run, Session, SessionHead, User
from agentrpc.v1 import (
    approval_pb2,
    archive_pb2,
    auth_pb2,
    common_pb2,
    content_pb2,
    event_pb2,
    file_pb2,
    run_pb2,
    session_pb2,
)

__all__ = [
    "approval_message",
    "archive_message",
    "call_in_doubt",
    "file_message",
    "head_state",
    "public_options",
    "run_message",
    "session_message",
    "text_block",
    "user_message",
]

_LIST_TEXT = 1024
_INLINE = 256 * 1024


def head_state(head: SessionHead) -> SessionState:
    """The state of a session."""
    return session_state(
        closed=SessionState(head.closed) if head.closed else None,
        active=head.active_run is not None,
        queued=head.queued,
        waiting=head.pending_approvals > 0 or bool(head.in_doubt),
    )


def session_message(
    session: Session, head: SessionHead, pending: Sequence[UUID] = (), archive: ArchiveRow | None = None
) -> session_pb2.Session:
    """`agentrpc.v1.Session`."""
    message = session_pb2.Session(
        name=session_name(session.id),
        display_name=session.display_name,
        description=session.description,
        labels=session.labels,
        owner=user_name(session.owner),
        state=f"STATE_{head_state(head)}",
        options=public_options(session.options),
        active_run=run_name(session.id, head.active_run) if head.active_run else "",
        pending_approvals=[approval_name(session.id, approval) for approval in pending],
        last_sequence=head.last_sequence,
        usage=common_pb2.Usage.FromString(session.usage),
        run_count=head.run_count,
        tool_call_count=head.tool_call_count,
        claude_session_id=str(session.claude_session_id),
        etag=etag_of(session.revision),
        imposed_rules=session.imposed_rules,
    )
    _time(message.create_time, session.create_time)
    _time(message.update_time, session.update_time)
    if session.archive_time:
        _time(message.archive_time, session.archive_time)
    if session.delete_time:
        _time(message.delete_time, session.delete_time)
    if session.pause_time:
        _time(message.pause_time, session.pause_time)
    if session.forked_from:
        message.forked_from = session_name(session.forked_from)
    if session.agent_id and session.agent_number:
        message.agent = agent_version_name(session.agent_id, session.agent_number)
    if session.isolation_level:
        message.MergeFrom(session_pb2.Session(isolation_level=f"ISOLATION_LEVEL_{session.isolation_level}"))
    if archive is not None:
        message.MergeFrom(
            session_pb2.Session(archive_storage_state=f"STATE_{archive.state}", restore_needed=archive.dropped)
        )
    return message


def archive_message(row: ArchiveRow) -> archive_pb2.Archive:
    """`agentrpc.v1.Archive`."""
    message = archive_pb2.Archive(
        name=archive_name(row.session_id),
        state=f"STATE_{row.state}",
        restore_needed=row.dropped,
        size=row.size,
        sha256=row.sha256,
        event_count=row.event_count,
        file_count=row.file_count,
        attempt_count=row.attempts,
        error=row.error,
    )
    _time(message.create_time, row.create_time)
    if row.store_time:
        _time(message.store_time, row.store_time)
    if row.restore_time:
        _time(message.restore_time, row.restore_time)
    return message


def file_message(session_id: UUID, entry: FileEntry, sha256: str = "") -> file_pb2.File:
    """`agentrpc.v1.File`."""
    info, raw = entry.info, os.fsencode(entry.path)
    message = file_pb2.File(
        parent=session_name(session_id), path=shown(entry.path), link_target=shown(entry.target), sha256=sha256
    )
    if message.path.encode() != raw:
        message.raw_path = raw
    message.modify_time.FromNanoseconds(info.st_mtime_ns)
    if stat.S_ISREG(info.st_mode):
        message.type = file_pb2.File.TYPE_FILE
        message.size = info.st_size
        message.executable = bool(info.st_mode & stat.S_IXUSR)
        message.etag = etag_of_file(info)
    elif stat.S_ISDIR(info.st_mode):
        message.type = file_pb2.File.TYPE_FOLDER
    elif stat.S_ISLNK(info.st_mode):
        message.type = file_pb2.File.TYPE_LINK
    else:
        message.type = file_pb2.File.TYPE_OTHER
    return message


def public_options(stored: bytes) -> session_pb2.SessionOptions:
    """Options without secrets: the keys of env, headers and queries stay, so that one sees what is set."""
    options = session_pb2.SessionOptions.FromString(stored)
    for server in options.mcp_servers:
        server.CopyFrom(redacted(server))
    return options


def run_message(
    run: Run, *, head: SessionHead | None = None, progress: Progress | None = None, in_list: bool = False
) -> run_pb2.Run:
    """`agentrpc.v1.Run`.

    Args:
        run: The row.
        head: The session's head, for what moves while the run is under way.
        progress: Where it is; None: it has ended, or is not stored yet.
        in_list: Lists cut prompt and result.
    """
    message = run_pb2.Run(
        name=run_name(run.session_id, run.id),
        prompt=run.prompt,
        conflict_policy=f"CONFLICT_POLICY_{run.conflict_policy}",
        labels=run.labels,
        state=f"STATE_{run.state}",
        creator=user_name(run.creator),
        attempt=run.attempt,
        first_sequence=run.first_sequence,
        last_sequence=run.last_sequence,
        retry_of=run_name(run.session_id, run.retry_of) if run.retry_of else "",
    )
    if head is not None and progress is not None:
        _add_progress(message, run, head, progress)
    if run.timeout is not None:
        message.timeout.FromTimedelta(run.timeout)
    if run.inactivity_timeout is not None:
        message.inactivity_timeout.FromTimedelta(run.inactivity_timeout)
    _time(message.create_time, run.create_time)
    if run.start_time:
        _time(message.start_time, run.start_time)
    if run.end_time:
        _time(message.end_time, run.end_time)
        _time(message.last_event_time, run.end_time)
    if run.result is not None:
        message.result.ParseFromString(run.result)
    if run.error is not None:
        message.error.ParseFromString(run.error)
    if run.stop_receipt is not None:
        message.stop_receipt.ParseFromString(run.stop_receipt)
    if run.usage:
        used = event_pb2.RunEnded.FromString(run.usage)
        message.usage.CopyFrom(used.usage)
        message.model_usage.extend(used.model_usage)
    if in_list:
        _cut(message)
    return message


def _add_progress(message: run_pb2.Run, run: Run, head: SessionHead, progress: Progress) -> None:
    message.waiting_on.CopyFrom(waiting_on(run, head, progress))
    message.pending_approvals.extend(approval_name(run.session_id, approval) for approval, _ in progress.pending)
    if head.active_run != run.id:
        return
    message.last_sequence = head.last_sequence
    message.worker = driver(progress)
    if happened := newest_time(progress):
        _time(message.last_event_time, happened)
    if run.state == RunState.UNKNOWN_OUTCOME:
        message.in_doubt_calls.extend(map(call_in_doubt, progress.open_calls))


def call_in_doubt(row: LedgerRow) -> run_pb2.CallInDoubt:
    """`agentrpc.v1.CallInDoubt`."""
    call = run_pb2.CallInDoubt(tool_use_id=row.tool_use_id, tool_name=row.tool_name)
    _time(call.start_time, row.start_time)
    return call


def _cut(message: run_pb2.Run) -> None:
    prompt = message.prompt.encode()
    if len(prompt) > _LIST_TEXT:
        message.prompt = prompt[:_LIST_TEXT].decode(errors="ignore")
        message.prompt_omitted.CopyFrom(_omission(prompt))
    text = message.result.text.encode()
    if len(text) > _LIST_TEXT:
        message.result.text = text[:_LIST_TEXT].decode(errors="ignore")
        if not message.result.HasField("omitted"):
            message.result.omitted.CopyFrom(_omission(text))


def text_block(text: str) -> content_pb2.ContentBlock:
    """A block of text; of a large one only its beginning."""
    block = content_pb2.ContentBlock()
    data = text.encode()
    if len(data) > _INLINE:
        block.text.text = data[:_LIST_TEXT].decode(errors="ignore")
        block.text.omitted.CopyFrom(_omission(data))
    else:
        block.text.text = text
    return block


def _omission(data: bytes) -> common_pb2.Omission:
    return common_pb2.Omission(total_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def approval_message(row: Approval) -> approval_pb2.Approval:
    """`agentrpc.v1.Approval`."""
    message = approval_pb2.Approval.FromString(row.question)
    message.MergeFrom(approval_pb2.Approval(state=f"STATE_{row.state}"))
    _time(message.create_time, row.create_time)
    _time(message.expire_time, row.expire_time)
    if row.resolution is not None:
        message.resolution.ParseFromString(row.resolution)
    return message


def user_message(user: User) -> auth_pb2.User:
    """`agentrpc.v1.User`."""
    message = auth_pb2.User(name=user_name(user.id), username=user.username, role=f"ROLE_{user.role}")
    _time(message.create_time, user.create_time)
    return message


def _time(out: Timestamp, value: datetime) -> None:
    out.FromDatetime(value)
