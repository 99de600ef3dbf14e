"""What end-to-end tests say and read."""

import asyncio
import json

from agentrpc.v1 import approval_pb2, run_pb2, session_pb2

ALLOW = approval_pb2.Resolution(decision=approval_pb2.Resolution.DECISION_ALLOW)
DENY = approval_pb2.Resolution(decision=approval_pb2.Resolution.DECISION_DENY, message="not today")


def bash(command, **more):
    return f"[[tool: Bash {json.dumps({'command': command, **more})}]]"


async def create(client, **options):
    return (await client.create_session(session_pb2.Session(options=session_pb2.SessionOptions(**options)))).name


async def run(client, session, prompt, answer=None, deltas=False, timeout=60):
    """All events of a run; `answer(approval)` is asked about approvals."""
    events = []
    async with asyncio.timeout(timeout):
        async for event in client.run(session, prompt, include_deltas=deltas):
            events.append(event)
            if event.HasField("approval_requested"):
                assert answer is not None, event
                await client.resolve(event.approval_requested.approval.name, answer)
    return events


def of(events, kind):
    return [getattr(event, kind) for event in events if event.HasField(kind)]


def state(events):
    return run_pb2.Run.State.Name(of(events, "run_ended")[0].state)


def outputs(events):
    return ["".join(b.text.text for b in done.content) for done in of(events, "tool_call_finished")]
