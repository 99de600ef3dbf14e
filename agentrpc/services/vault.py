"""What a worker has for credentials: the deployment's authority, and whom it trusts itself."""

import asyncio
import ssl

from agentrpc.services.certificate_authority import CertificateAuthority, load_authority
from agentrpc.services.secrets import SecretBox
from agentrpc.services.session_credentials import SessionCredentials
from agentrpc.services.tool_callers import Caller
from agentrpc.settings import Settings
from agentrpc.store.database import Database
from agentrpc.v1 import session_pb2

__all__ = ["Vault"]


class Vault:
    """One for each worker.

    Args:
        database: The store.
        settings: The settings.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._box = SecretBox(settings.secret_keys)
        self._loading = asyncio.Lock()
        self._loaded: tuple[CertificateAuthority, ssl.SSLContext] | None = None

    async def open(self, caller: Caller, options: session_pb2.SessionOptions) -> SessionCredentials | None:
        """The credentials of a process that is about to start; None: its options name none.

        Raises:
            StoreUnavailable: Nobody can tell.
            FailedPrecondition: NOT_FOUND or NOT_CONFIGURED: one is gone, not the owner's to use, or does not open.
        """
        if not options.credentials:
            return None
        credentials = SessionCredentials(caller, self._box, options.credentials, *await self._load())
        await credentials.check()
        return credentials

    async def _load(self) -> tuple[CertificateAuthority, ssl.SSLContext]:
        async with self._loading:
            if self._loaded is None:
                context = ssl.create_default_context()
                context.set_alpn_protocols(["http/1.1"])
                if self._settings.egress_ca is not None:
                    context.load_verify_locations(self._settings.egress_ca)
                self._loaded = await load_authority(self._database, self._box), context
            return self._loaded
