"""A whole stack in processes of its own: real servers, real CLI, scripted model."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest_asyncio

from agentrpc.app import _admin_for
from agentrpc.client import AgentRpcClient
from agentrpc.embedded.stack import Stack


class Running:
    def __init__(self, stack, password):
        self.stack = stack
        self.password = password
        self.folder = stack._dir

    def workspace(self, session):
        """Where the agent of a session works."""
        return self.folder / "workspaces" / session.removeprefix("sessions/") / "files"

    def client(self):
        return AgentRpcClient(self.stack.address, username="admin", password=self.password)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running():
    folder = Path(tempfile.mkdtemp(prefix="agentrpc-e2e-"))
    stack = Stack(folder, listen="127.0.0.1:0")
    await stack.start()
    keeping = asyncio.create_task(stack.run_until(asyncio.Event()))
    try:
        yield Running(stack, await _admin_for(stack.environment))
    finally:
        keeping.cancel()
        await stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture(loop_scope="module")
async def client(running):
    async with running.client() as client:
        yield client
