"""Sessions as a whole: pausing, ending, forking and going back."""

from agentrpc.bus.redis_bus import Bus
from agentrpc.domain.principal import Principal
from agentrpc.services.sessions import Sessions
from agentrpc.services.signals import Doorbell
from agentrpc.settings import Settings
from agentrpc.store.database import Database
from agentrpc.v1 import session_pb2, session_service_pb2

__all__ = ["SessionControl"]


class SessionControl:
    """The use cases."""

    def __init__(
        self, database: Database, bus: Bus, doorbell: Doorbell, sessions: Sessions, settings: Settings
    ) -> None:
        self._database = database
        self._bus = bus
        self._doorbell = doorbell
        self._sessions = sessions
        self._settings = settings

    async def pause(self, principal: Principal, name: str, reason: str) -> session_pb2.Session:
        """PauseSession."""
        raise NotImplementedError

    async def resume(self, principal: Principal, name: str) -> session_pb2.Session:
        """ResumeSession."""
        raise NotImplementedError

    async def terminate(self, principal: Principal, name: str, reason: str) -> session_pb2.Session:
        """TerminateSession."""
        raise NotImplementedError

    async def fork(self, principal: Principal, request: session_service_pb2.ForkSessionRequest) -> session_pb2.Session:
        """ForkSession."""
        raise NotImplementedError

    async def rewind(
        self, principal: Principal, request: session_service_pb2.RewindSessionRequest
    ) -> session_pb2.Session:
        """RewindSession."""
        raise NotImplementedError
