"""What leads out of a session's process: the door to the model gateway, and egress proxies.

The CLI's sandbox, and that of each MCP server beside it, has a proxy of its own; all of them decide by one policy and
are recorded together.
"""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from agentrpc.claude.agent import AgentStartError
from agentrpc.claude.fence import GATEWAY
from agentrpc.claude.launcher import Isolation
from agentrpc.claude.listeners import Listeners
from agentrpc.domain.model_calls import RunAllowance
from agentrpc.services.network import NO_FENCE, Door, Egress, EgressMaker, Gateway, NetworkRules
from agentrpc.services.session_credentials import SessionCredentials
from agentrpc.services.session_host.accesses import AccessRecord
from agentrpc.settings import Settings
from agentrpc.v1 import event_pb2, session_pb2

__all__ = ["SessionNetwork"]

_NO_CREDENTIALS = (
    "the session names credentials, and this worker cannot add them, because it does not keep an agent's network "
    "apart: use a worker with bubblewrap"
)


class SessionNetwork:
    """The ways out of one process at a time.

    Args:
        gateway: The model gateway.
        egress: Makes proxies.
        settings: What the operator lets agents reach.
        isolation: Whether the process is fenced in.
        put: Gets events of destinations.

    Attributes:
        url: Where the CLI finds the gateway, while there is a door.
        record: What was asked for.
    """

    def __init__(
        self,
        gateway: Gateway,
        egress: EgressMaker,
        settings: Settings,
        isolation: Isolation,
        put: Callable[[event_pb2.Event], None],
    ) -> None:
        self._gateway = gateway
        self._egress = egress
        self._rules = NetworkRules(settings)
        self._isolation = isolation
        self._new_proxy: Callable[..., Egress] | None = None
        self._credentials: SessionCredentials | None = None
        self._door: Door | None = None
        self.url = ""
        self.record = AccessRecord(put)

    async def open(
        self,
        options: session_pb2.NetworkOptions,
        credentials: SessionCredentials | None,
        may_call: Callable[[], bool],
        under_way: Callable[[], RunAllowance | None],
    ) -> Door:
        """A door for a new process, and the policy by which everything around it decides.

        Raises:
            AgentStartError: The process would not be fenced in, and has to be.
        """
        if not self._isolation.fenced and self._rules.needs_fence(options):
            raise AgentStartError(NO_FENCE)
        if not self._isolation.fenced and credentials is not None:
            raise AgentStartError(_NO_CREDENTIALS)
        policy = self._rules.policy(options)
        self._new_proxy = partial(self._egress, policy, report=self.record.note)
        self._credentials = credentials
        self._door = door = self._gateway.open(may_call, under_way)
        if self._isolation.fenced:
            self.url = "http://{}:{}".format(*GATEWAY)
            return door
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        await door.serve(listener)
        return door

    @asynccontextmanager
    async def serving_cli(self, listeners: Listeners) -> AsyncIterator[None]:
        """Serve the CLI's own network."""
        assert self._door is not None
        await self._door.serve(listeners.gateway)
        async with self._proxied(listeners, credentials=self._credentials):
            yield

    @asynccontextmanager
    async def serving_program(self, listeners: Listeners) -> AsyncIterator[None]:
        """Serve that of a program beside it, which has no business with the gateway, and keys of its own."""
        listeners.gateway.close()
        async with self._proxied(listeners):
            yield

    @asynccontextmanager
    async def _proxied(
        self, listeners: Listeners, *, credentials: SessionCredentials | None = None
    ) -> AsyncIterator[None]:
        assert self._new_proxy is not None
        proxy = self._new_proxy(credentials=credentials)
        self.record.add(proxy)
        try:
            await proxy.serve(listeners.proxy)
            yield
        finally:
            await proxy.close()
            self.record.end(proxy)

    def cut(self) -> None:
        """Abort the calls under way with the run token."""
        if self._door is not None:
            self._door.cut()

    def revoke(self) -> None:
        """End the run token, and the calls under way with it."""
        if self._door is not None:
            self._door.revoke()

    async def close(self) -> None:
        """The process and all around it has ended: close the door, and tell what came of everything."""
        door, self._door = self._door, None
        self.record.tell()
        if door is not None:
            await door.close()
