"""What a claim appends to the log: the beginning of a run."""

from agentrpc import clock
from agentrpc.names import run_name
from agentrpc.services.views import text_block
from agentrpc.store.leases import Origin
from agentrpc.store.log import LogEvent
from agentrpc.store.tables import Run, Session
from agentrpc.v1 import event_pb2

__all__ = ["first_events"]


def first_events(session: Session, run: Run, *, origin: Origin, warm: bool) -> list[LogEvent]:
    """What a claim appends: `run_started` and, the first time, the prompt."""
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
    if origin is Origin.QUEUED:
        message = event_pb2.UserMessage(
            transcript_uuid=str(run.id),
            origin=event_pb2.UserMessage.ORIGIN_PROMPT,
            blocks=[text_block(run.prompt)],
        )
        said = event_pb2.Event(run=name, user_message=message)
        said.time.FromDatetime(clock.utcnow())
        events.append(LogEvent.of(said, run.id))
    return events
