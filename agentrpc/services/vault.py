"""What a worker has for credentials: those of a session's process, whom its sandbox trusts, and whom the proxy does."""

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
        self._authority: CertificateAuthority | None = None
        self._upstream: ssl.SSLContext | None = None

    async def open(self, caller: Caller, options: session_pb2.SessionOptions) -> SessionCredentials | None:
        """The credentials of a process that is about to start; None: its options name none.

        Raises:
            StoreUnavailable: Nobody can tell.
            FailedPrecondition: NOT_FOUND or NOT_CONFIGURED: one is gone, not the owner's to use, or does not open.
        """
        if not options.credentials:
            return None
        credentials = SessionCredentials(caller, self._box, options.credentials, await self._trusted())
        await credentials.check()
        return credentials

    async def authority(self) -> CertificateAuthority:
        """The deployment's authority. Raises as `load_authority`, and StoreUnavailable."""
        async with self._loading:
            if self._authority is None:
                self._authority = await load_authority(self._database, self._box)
            return self._authority

    def upstream(self) -> ssl.SSLContext:
        """By whom the certificates of servers may be: the system's authorities, and those that the operator adds."""
        if self._upstream is None:
            context = ssl.create_default_context()
            context.set_alpn_protocols(["http/1.1"])
            if self._settings.egress_ca is not None:
                context.load_verify_locations(self._settings.egress_ca)
            self._upstream = context
        return self._upstream

    async def _trusted(self) -> str:
        """PEM of those whom programs in a sandbox with credentials trust: the same, and the deployment's authority."""
        known = map(ssl.DER_cert_to_PEM_cert, self.upstream().get_ca_certs(binary_form=True))
        return "".join([*known, (await self.authority()).pem])
