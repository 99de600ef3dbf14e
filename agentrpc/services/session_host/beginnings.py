"""What a claim appends to the log: the beginning of a run."""

import hashlib

from agentrpc import clock
from agentrpc.names import run_name
from agentrpc.store.log import LogEvent
from agentrpc.store.tables import Run, Session
from agentrpc.v1 import event_pb2

__all__ = ["first_events"]

_INLINE = 256 * 1024


def first_events(session: Session, run: Run, *, taken_over: bool, warm: bool) -> list[LogEvent]:
    """What a claim appends: `run_started` and, on the first attempt, the prompt."""
    if warm:
        start = event_pb2.PROCESS_START_WARM
    elif session.agent_version:
        start = event_pb2.PROCESS_START_RESUMED
    else:
        start = event_pb2.PROCESS_START_COLD
    name = run_name(session.id, run.id)
    started = event_pb2.Event(run=name, run_started=event_pb2.RunStarted(attempt=run.attempt, process_start=start))
    started.time.FromDatetime(clock.utcnow())
    events = [LogEvent.of(started, run.id)]
    if not taken_over:
        message = event_pb2.UserMessage(transcript_uuid=str(run.id), origin=event_pb2.UserMessage.ORIGIN_PROMPT)
        block = message.blocks.add()
        data = run.prompt.encode()
        if len(data) > _INLINE:
            block.text.text = data[:1024].decode(errors="ignore")
            block.text.omitted.total_bytes = len(data)
            block.text.omitted.sha256 = hashlib.sha256(data).hexdigest()
        else:
            block.text.text = run.prompt
        said = event_pb2.Event(run=name, user_message=message)
        said.time.FromDatetime(clock.utcnow())
        events.append(LogEvent.of(said, run.id))
    return events
