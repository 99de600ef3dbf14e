"""What a run that has not ended waits for just now, derived from what the store knows of it."""

from datetime import UTC, datetime

from agentrpc.domain.isolation import Level
from agentrpc.domain.states import RunState
from agentrpc.names import approval_name, run_name
from agentrpc.store.progress import Progress
from agentrpc.store.tables import Run, SessionHead
from agentrpc.v1 import event_pb2, run_pb2

__all__ = ["driver", "newest_time", "waiting_on"]

_Wait = tuple[run_pb2.WaitingOn.Reason, datetime | None, str]
_On = run_pb2.WaitingOn


def waiting_on(run: Run, head: SessionHead, progress: Progress) -> run_pb2.WaitingOn:
    """`agentrpc.v1.WaitingOn`."""
    wait = _queued(run, head, progress) if run.state == RunState.QUEUED else _begun(run, head, progress)
    reason, since, subject = wait
    message = run_pb2.WaitingOn(reason=reason, subject=subject)
    if since is not None:
        message.since.FromDatetime(since)
    if reason == _On.REASON_CAPACITY and head.needed_level > max(progress.worker_levels, default=Level.NONE):
        # No worker may take it up, however much room it has.
        message.reason = _On.REASON_ISOLATION
        message.needed_isolation_level = Level(head.needed_level).value_in_messages
        message.worker_isolation_levels.extend(level.value_in_messages for level in progress.worker_levels)
    return message


def driver(progress: Progress) -> str:
    """The living worker that holds the session, as `{host}:{process id}`; empty when none does."""
    holder = progress.holder
    return holder.address if holder is not None and holder.dead_time is None else ""


def newest_time(progress: Progress) -> datetime | None:
    """When the newest event happened; None when there is none."""
    if not progress.newest_event:
        return None
    return event_pb2.Event.FromString(progress.newest_event).time.ToDatetime(UTC)


def _queued(run: Run, head: SessionHead, progress: Progress) -> _Wait:
    if not progress.first:
        return _On.REASON_QUEUE, run.create_time, run_name(run.session_id, head.active_run) if head.active_run else ""
    if head.paused:
        return _On.REASON_PAUSE, max(run.create_time, progress.pause_time or run.create_time), ""
    # The newest event of the session is the end of the run before it.
    since = max(run.create_time, newest_time(progress) or run.create_time)
    return _silence(progress) or (_On.REASON_CAPACITY, since, "")


def _begun(run: Run, head: SessionHead, progress: Progress) -> _Wait:
    if run.state == RunState.UNKNOWN_OUTCOME:
        return _On.REASON_DECISION, run.doubt_time, ""
    if progress.pending:
        approval_id, asked = progress.pending[0]
        return _On.REASON_APPROVAL, asked, approval_name(run.session_id, approval_id)
    if silence := _silence(progress):
        return silence
    driven = bool(driver(progress))
    if driven and progress.open_calls:
        # The newest: a call that has started a subagent is open for as long as the calls of the subagent are.
        call = progress.open_calls[-1]
        return _On.REASON_TOOL, call.start_time, call.tool_use_id
    if head.paused:
        return _On.REASON_PAUSE, progress.pause_time, ""
    return _On.REASON_MODEL if driven else _On.REASON_CAPACITY, newest_time(progress), ""


def _silence(progress: Progress) -> _Wait | None:
    """The wait for the end of the lease of a worker that does not answer any more."""
    holder = progress.holder
    if holder is None or not holder.silent or holder.dead_time is not None:
        return None
    return _On.REASON_LEASE, holder.lease_expire_time, holder.address
