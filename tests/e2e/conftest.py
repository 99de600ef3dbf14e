"""One stack for the tests of a module."""

import pytest_asyncio

from tests.e2e.stacks import own_stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running():
    async with own_stack() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(running):
    async with running.client() as client:
        yield client
