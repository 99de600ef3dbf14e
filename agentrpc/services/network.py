"""What the operator and a session's options together let its agent reach, and who carries it there."""

import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from agentrpc.domain.model_calls import RunAllowance
from agentrpc.domain.network import Destination, NetworkMode, NetworkPolicy, check_destination
from agentrpc.errors import FailedPrecondition, InvalidArgument
from agentrpc.services.session_credentials import SessionCredentials
from agentrpc.settings import Settings
from agentrpc.v1 import session_pb2

__all__ = ["NOTHING_ASKED", "NO_FENCE", "Access", "Door", "Egress", "EgressMaker", "Gateway", "McpDoor", "NetworkRules"]

# What a session asks for that says nothing.
NOTHING_ASKED = session_pb2.NetworkOptions()
NO_FENCE = (
    "this worker cannot keep an agent's network apart, as the session's options or its operator ask: use a worker with "
    "bubblewrap, or MODE_PUBLIC in options.network with nothing denied"
)
_ORDER = (NetworkMode.NONE, NetworkMode.LISTED, NetworkMode.PUBLIC)
_Mode = session_pb2.NetworkOptions.Mode


class NetworkRules:
    """The operator's part of it.

    Args:
        settings: The settings.

    Raises:
        FailedPrecondition: NOT_CONFIGURED, one of the destinations there is none.
    """

    def __init__(self, settings: Settings) -> None:
        self._default = NetworkMode(settings.network_mode)
        self._ceiling = NetworkMode(settings.network_ceiling)
        self._private = settings.network_private
        denied = []
        for text in settings.network_denied:
            try:
                denied.append(check_destination(text))
            except ValueError as error:
                raise FailedPrecondition(
                    f"AGENTRPC_NETWORK_DENIED: {text[:80]!a}: {error}",
                    reason="NOT_CONFIGURED",
                    metadata={"setting": "network_denied"},
                ) from None
        self._denied: tuple[Destination, ...] = tuple(denied)

    def check(self, options: session_pb2.NetworkOptions, path: str) -> None:
        """Refuse what is more than the operator allows. Raises FIELD_INVALID."""
        if _ORDER.index(self._mode(options)) > _ORDER.index(self._ceiling):
            text = f"is more than the operator allows, which is MODE_{self._ceiling} (AGENTRPC_NETWORK_CEILING)"
            raise InvalidArgument.field(f"{path}.mode", text)

    def policy(self, options: session_pb2.NetworkOptions) -> NetworkPolicy:
        """What an agent with these options, checked, may reach. The ceiling may be lower than when they were stored."""
        return NetworkPolicy(
            min(self._mode(options), self._ceiling, key=_ORDER.index),
            tuple(map(check_destination, options.allowed)),
            (*self._denied, *map(check_destination, options.denied)),
            self._private,
        )

    def needs_fence(self, options: session_pb2.NetworkOptions) -> bool:
        """Whether an agent must not run where it would have its worker's network."""
        policy = self.policy(options)
        return policy.mode is not NetworkMode.PUBLIC or bool(policy.denied)

    def _mode(self, options: session_pb2.NetworkOptions) -> NetworkMode:
        if options.mode == _Mode.MODE_UNSPECIFIED:
            return self._default
        return NetworkMode(_Mode.Name(options.mode).removeprefix("MODE_"))


class McpDoor(Protocol):
    """Where one process finds MCP servers."""

    def open_mcp(self, endpoint: Any) -> str:  # noqa: ANN401 - of gateway.mcp.McpEndpoint
        """A new path."""
        ...

    def close_mcp(self, path: str) -> None:
        """End a path."""
        ...


class Door(McpDoor, Protocol):
    """Where one process finds the model gateway as well."""

    @property
    def token(self) -> str:
        """The run token, which is good there alone."""
        ...

    async def serve(self, listener: socket.socket) -> None:
        """Accept what comes there until `close`, which closes it too."""
        ...

    def cut(self) -> None:
        """Abort the calls under way with the token."""
        ...

    def revoke(self) -> None:
        """End the token, and the calls under way with it."""
        ...

    async def close(self) -> None:
        """End it, with all that is under way."""
        ...


class Gateway(Protocol):
    """The model gateway, as far as a session needs it."""

    def open(self, may_call: Callable[[], bool], under_way: Callable[[], RunAllowance | None]) -> Door:
        """A door whose token is good while `may_call` says so, for what the run under way may ask."""
        ...


class Access(Protocol):
    """A destination, and what came of it so far: of `gateway.egress`."""

    @property
    def host(self) -> str:
        """As it was asked for. `*` stands for those that are too many to be told apart."""
        ...

    @property
    def port(self) -> int:
        """Its port."""
        ...

    @property
    def allowed(self) -> bool:
        """What was decided."""
        ...

    @property
    def rule(self) -> str:
        """What decided."""
        ...

    @property
    def connections(self) -> int:
        """How often it was asked for."""
        ...

    @property
    def credential(self) -> str:
        """The credential that was added to a request there last; empty: none."""
        ...

    @property
    def bytes_sent(self) -> int:
        """To it."""
        ...

    @property
    def bytes_received(self) -> int:
        """From it."""
        ...


class Egress(Protocol):
    """An egress proxy, as far as a session needs it."""

    async def serve(self, listener: socket.socket) -> None:
        """Accept what comes there until `close`, which closes it too."""
        ...

    async def close(self) -> None:
        """End it, with all connections."""
        ...

    def totals(self) -> Sequence[Access]:
        """What came of each destination."""
        ...


class EgressMaker(Protocol):
    """Makes a proxy that decides by a policy, reports each connection, and adds credentials if it is given some."""

    def __call__(
        self,
        policy: NetworkPolicy,
        *,
        report: Callable[[Access], None],
        credentials: SessionCredentials | None = None,
    ) -> Egress:
        """Make one."""
        ...
