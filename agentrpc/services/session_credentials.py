"""Credentials in options of sessions, agents and tasks: checked when stored, when a process starts, and at each use.

What decides is the store at that moment: whether the session is this worker's, whether its owner may still use the
credential, what its hosts and its value are. Nothing is kept between two requests.
"""

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from agentrpc.domain.credentials import HostIndex, header_of, read_host_pattern, secrets_of
from agentrpc.domain.principal import Principal
from agentrpc.errors import FailedPrecondition, NotFound
from agentrpc.names import credential_name, parse_credential
from agentrpc.services.certificate_authority import CertificateAuthority
from agentrpc.services.credentials import load_credential
from agentrpc.services.secrets import SecretBox
from agentrpc.services.tool_callers import Caller
from agentrpc.services.validation import Faults
from agentrpc.store.credentials import UsableCredential, note_use, usable_credentials
from agentrpc.store.database import Transaction
from agentrpc.v1 import credential_pb2, session_pb2

__all__ = ["Injection", "SessionCredentials", "check_credentials"]

# Look-ups of one session at once: an agent that makes requests by the thousand keeps no other's log waiting.
_LOOKUPS = 2


async def check_credentials(
    tx: Transaction, principal: Principal, options: session_pb2.SessionOptions, path: str = "session.options"
) -> None:
    """Check whether the caller may use the credentials that options name, which are about to be stored.

    Raises:
        InvalidArgument: FIELD_INVALID: one is not there, or not his to use, or two name the same host.
    """
    faults = Faults()
    index = HostIndex()
    for at, name in enumerate(options.credentials):
        where = f"{path}.credentials[{at}]"
        try:
            row = await load_credential(tx, principal, parse_credential(name, field=where))
        except NotFound as error:
            faults.add(where, error.message)
            continue
        for host in row.hosts:
            if (other := index.add(name, read_host_pattern(host))) is not None:
                faults.add(where, f"{name} and {other} are both for {host}, or a part of it: name one of them")
                break
    faults.done()


@dataclass(frozen=True, slots=True)
class Injection:
    """What is added to one request.

    Attributes:
        credential: Its name.
        header: The header's name and value.
        secrets: What must not come back in the answer.
    """

    credential: str
    header: tuple[str, str]
    secrets: Sequence[bytes]


class SessionCredentials:
    """Those of one process.

    Args:
        caller: The session, as this worker holds it.
        box: Opens values.
        names: What its options name.
        authority: Issues the certificates by which its sandbox is spoken to.
        upstream: Whom the servers have to be certified by that get them.
    """

    def __init__(
        self,
        caller: Caller,
        box: SecretBox,
        names: Sequence[str],
        authority: CertificateAuthority,
        upstream: ssl.SSLContext,
    ) -> None:
        self.authority = authority
        self.upstream = upstream
        self._caller = caller
        self._box = box
        self._wanted = [parse_credential(name) for name in names]
        self._turns = asyncio.Semaphore(_LOOKUPS)

    def trusted(self) -> str:
        """PEM of those whom programs in its sandbox have to trust: the same as `upstream`, and the authority."""
        known = map(ssl.DER_cert_to_PEM_cert, self.upstream.get_ca_certs(binary_form=True))
        return "".join([*known, self.authority.pem])

    async def check(self) -> None:
        """Whether all of them can be used now.

        Raises:
            FailedPrecondition: NOT_FOUND: one is gone, or not the owner's to use. NOT_CONFIGURED: one does not open.
        """
        usable = await self._usable()
        for wanted in self._wanted:
            if wanted not in usable:
                raise FailedPrecondition(
                    f"the session names {credential_name(wanted)}, which was deleted or is not shared with its owner "
                    "any more: change the session's credentials",
                    reason="NOT_FOUND",
                )
            self._value(usable[wanted])

    async def covers(self, host: str, port: int | None = None) -> bool:
        """Whether one of them is for this host, at this port or at any. Raises StoreUnavailable."""
        return await self._find(host, port) is not None

    async def take(self, host: str, port: int) -> Injection | None:
        """What is to be added to a request to this host that is made now; None: nothing. It counts as used.

        Raises:
            StoreUnavailable: Nobody can tell.
            FailedPrecondition: NOT_CONFIGURED: the value does not open.
        """
        found = await self._find(host, port)
        if found is None:
            return None
        value = self._value(found)
        if found.unnoted:
            await note_use(self._caller.database, found.id)
        header = header_of(credential_pb2.Credential.FromString(found.kind), value)
        return Injection(credential_name(found.id), header, secrets_of(header[1], value))

    async def _find(self, host: str, port: int | None) -> UsableCredential | None:
        usable = await self._usable()
        # Its owner may have given one a host of another since: the first that is named has it.
        for wanted in self._wanted:
            found = usable.get(wanted)
            patterns = [] if found is None else map(read_host_pattern, found.hosts)
            if any(pattern.fits(host, port or pattern.port or 0) for pattern in patterns):
                return found
        return None

    async def _usable(self) -> dict[UUID, UsableCredential]:
        caller = self._caller
        if not caller.may_begin():
            return {}
        async with self._turns:
            return await usable_credentials(caller.database, caller.session_id, caller.epoch, self._wanted)

    def _value(self, found: UsableCredential) -> str:
        return self._box.open(found.secret, credential_name(found.id)).decode()
