"""Runs under way: deciding about calls in doubt, further messages, and making a run again."""

from agentrpc.bus.redis_bus import Bus
from agentrpc.domain.principal import Principal
from agentrpc.services.runs import Runs
from agentrpc.services.signals import Doorbell
from agentrpc.store.database import Database
from agentrpc.v1 import run_pb2, run_service_pb2

__all__ = ["RunControl"]


class RunControl:
    """The use cases."""

    def __init__(self, database: Database, bus: Bus, doorbell: Doorbell, runs: Runs) -> None:
        self._database = database
        self._bus = bus
        self._doorbell = doorbell
        self._runs = runs

    async def retry(self, principal: Principal, request: run_service_pb2.RetryRunRequest) -> run_pb2.Run:
        """RetryRun."""
        raise NotImplementedError

    async def resolve(self, principal: Principal, request: run_service_pb2.ResolveRunRequest) -> run_pb2.Run:
        """ResolveRun."""
        raise NotImplementedError

    async def steer(self, principal: Principal, request: run_service_pb2.SteerRunRequest) -> run_pb2.Run:
        """SteerRun."""
        raise NotImplementedError
