"""Stacks of a test's own, with settings of its own, that it may stop, kill and add processes to."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from agentrpc.app import _admin_for
from agentrpc.client import AgentRpcClient
from agentrpc.embedded.stack import Stack, _processes
from agentrpc.v1 import run_pb2, run_service_pb2
from tests.e2e.talk import bash
from tests.isolations import usable_isolation

# Three children: of a session of its own, deaf to SIGTERM, stopped. What is waited for never ends.
NASTY = bash(
    "setsid sh -c 'trap \"\" TERM HUP INT; sleep 600' & sh -c 'trap \"\" TERM HUP INT; sleep 600' &"
    " sh -c 'kill -STOP $$; sleep 600' & echo one >> count; wait"
)


class OwnStack:
    """A whole stack in processes of its own: real servers, real CLI, scripted model. Can be started again."""

    def __init__(self, folder):
        self.folder = folder

    async def start(self):
        self.stack = Stack(self.folder, listen="127.0.0.1:0")
        await self.stack.start()
        self._keeping = asyncio.create_task(self.stack.run_until(asyncio.Event()))

    def leave_dead(self):
        """From now on processes that end are not started again."""
        for task in self.stack._watching:
            task.cancel()

    async def stop(self):
        self._keeping.cancel()
        await self.stack.stop()

    async def restart(self):
        await self.stop()
        await self.start()

    def client(self, address=""):
        return AgentRpcClient(address or self.stack.address, username="admin", password=self.password)

    def workspace(self, session):
        """Where the agent of a session works."""
        return self.folder / "workspaces" / session.removeprefix("sessions/") / "files"

    def local(self, session):
        """What the worker's machine keeps of a session."""
        return self.folder / "sessions" / session.removeprefix("sessions/")

    def agents(self, session):
        """What runs in the workspace of a session."""
        return _processes(lambda process: process.cwd().startswith(str(self.workspace(session))))

    async def until_parked(self, session):
        """Until no CLI is alive."""
        await until(lambda: not self.agents(session), 20)

    def lines(self, session, name="count"):
        path = self.workspace(session) / name
        return path.read_text().split() if path.exists() else []

    @contextlib.contextmanager
    def another(self, *module, **environment):
        """One more process of the service."""
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            env={**os.environ, **self.stack.environment, **environment},
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


@contextlib.asynccontextmanager
async def own_stack(**settings):
    """A stack with these settings: `approval_hold=0.5`."""
    folder = Path(tempfile.mkdtemp(prefix="agentrpc-e2e-"))
    with pytest.MonkeyPatch.context() as patch:
        # As root nothing but a name makes it run without a sandbox.
        for name, value in {"isolation": usable_isolation(), **settings}.items():
            patch.setenv(f"AGENTRPC_{name.upper()}", str(value))
        running = OwnStack(folder)
        try:
            await running.start()
            running.password = await _admin_for(running.stack.environment)
            yield running
        finally:
            await running.stop()
            shutil.rmtree(folder, ignore_errors=True)


async def until(what, timeout=40.0):
    """What `what` says, once that is true."""
    async with asyncio.timeout(timeout):
        while True:
            if found := what():
                return found
            await asyncio.sleep(0.05)


async def begin(client, session, prompt, *, timeout=None, inactivity=None, **fields):
    """A run that is stored; its name."""
    run = run_pb2.Run(prompt=prompt, **fields)
    if timeout is not None:
        run.timeout.FromSeconds(timeout)
    if inactivity is not None:
        run.inactivity_timeout.FromSeconds(inactivity)
    return (await client.call(client.runs.CreateRun, run_service_pb2.CreateRunRequest(parent=session, run=run))).name


async def followed(client, name, *states):
    """The run, once it has one of these states; without any, once it has ended."""
    async with asyncio.timeout(90):
        while True:
            found = await client.get_run(name)
            if run_state(found) in states or (not states and found.HasField("end_time")):
                return found
            await asyncio.sleep(0.1)


def run_state(run):
    return run_pb2.Run.State.Name(run.state).removeprefix("STATE_")


async def seen(client, session, kind, run=""):
    """The first event of a kind, live ones included."""
    async with asyncio.timeout(60):
        async for event in client.watch(session, run=run, include_deltas=True):
            if event.HasField(kind):
                return getattr(event, kind)
    raise AssertionError(kind)


async def log(client, session):
    """All events of a session until now."""
    events = []
    last = (await client.get_session(session)).last_sequence
    async with asyncio.timeout(60):
        async for event in client.watch(session, include_deltas=False):
            events.append(event)
            if event.sequence >= last:
                break
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return events
