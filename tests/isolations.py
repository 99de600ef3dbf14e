"""How this machine can keep process trees apart."""

import asyncio
import contextlib
from urllib.parse import urlsplit

import pytest

from agentrpc.claude.fence import GATEWAY
from agentrpc.claude.launcher import Isolation, IsolationError, choose_isolation


def usable_isolation():
    """The best that works here."""
    try:
        return choose_isolation("auto")[0]
    except IsolationError:
        return Isolation.SUBREAPER


bubblewrap = pytest.mark.skipif(usable_isolation() is not Isolation.BUBBLEWRAP, reason="bubblewrap does not work here")


def isolations():
    """Parameters of a test for each."""
    return [pytest.param(Isolation.BUBBLEWRAP, marks=bubblewrap), Isolation.SUBREAPER]


def reaching(url, isolation=None):
    """Fields of an AgentSpec whose CLI finds a server of this machine's loopback in place of the gateway."""
    isolation = isolation or usable_isolation()
    if not isolation.fenced:
        return {"isolation": isolation, "gateway_url": url}
    server = urlsplit(url)

    async def relay(reader, writer):
        with contextlib.suppress(OSError):
            other_reader, other_writer = await asyncio.open_connection(server.hostname, server.port)
            with contextlib.closing(writer), contextlib.closing(other_writer):
                await asyncio.gather(_pass_on(reader, other_writer), _pass_on(other_reader, writer))

    @contextlib.asynccontextmanager
    async def ways_out(listeners):
        listeners.proxy.close()
        relays = set()

        def accept(reader, writer):
            relays.add(asyncio.create_task(relay(reader, writer)))

        served = await asyncio.start_server(accept, sock=listeners.gateway)
        try:
            yield
        finally:
            served.close()
            for each in relays:
                each.cancel()
            await asyncio.gather(*relays, return_exceptions=True)

    return {"isolation": isolation, "gateway_url": "http://{}:{}".format(*GATEWAY), "ways_out": ways_out}


async def _pass_on(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
