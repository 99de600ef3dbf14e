"""Credentials: what callers set and ask. Their values come in and never go out again.

Sessions use them by `session_credentials.py`.
"""

import hmac
from uuid import UUID

from agentrpc import clock
from agentrpc.domain.credentials import KINDS, check_value, read_host_pattern, secret_field, without_value
from agentrpc.domain.network import check_destination
from agentrpc.domain.principal import Principal, Role
from agentrpc.errors import InvalidArgument, ResourceExhausted
from agentrpc.names import credential_name, parse_credential, parse_user, user_name
from agentrpc.services.access import require_change, require_readable, require_write
from agentrpc.services.fields import check_etag, copy_path, etag_of, settable_paths
from agentrpc.services.idempotency import RequestKey, known_request, request_hash
from agentrpc.services.pages import Pager, fitting, order_key, order_values, page_size, parse_order
from agentrpc.services.secrets import SecretBox
from agentrpc.services.validation import Faults, request_uuid
from agentrpc.settings import Settings
from agentrpc.store.credentials import (
    CREDENTIAL_ORDER,
    CredentialQuery,
    CredentialRow,
    count_credentials,
    find_credentials,
    lock_credential,
)
from agentrpc.store.database import Database, Transaction
from agentrpc.v1 import credential_pb2, credential_service_pb2

__all__ = ["Credentials", "load_credential"]

_MAX_CREDENTIALS = 200
_MAX_HOSTS = 50
_SETTABLE = ("display_name", "description", "shared", "hosts", *KINDS)


class Credentials:
    """The use cases.

    Args:
        database: The store.
        settings: The settings.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._box = SecretBox(settings.secret_keys)
        self._key = settings.signing_key.get_secret_value().encode()
        self._pager = Pager(settings.signing_key.get_secret_value())

    async def create(
        self, principal: Principal, request: credential_service_pb2.CreateCredentialRequest
    ) -> credential_pb2.Credential:
        """CreateCredential."""
        require_write(principal, "credentials.create")
        given = request.credential
        value = _value_of(given)
        _check(given, value)
        key = RequestKey(principal, "CreateCredential", request_uuid(request.request_id), self._hash(request))
        now = clock.utcnow()
        row = CredentialRow(id=clock.uuid7(), owner=principal.user_id, revision=1, create_time=now, update_time=now)
        _set(row, given)
        row.secret = self._box.seal(value.encode(), credential_name(row.id))
        async with self._database.transaction() as tx:
            if (known := await known_request(tx, key, row.id)) is not None:
                return _message(await load_credential(tx, principal, known))
            if await count_credentials(tx, principal.user_id) >= _MAX_CREDENTIALS:
                raise ResourceExhausted(
                    f"you have {_MAX_CREDENTIALS} credentials: delete one first",
                    reason="LIMIT_REACHED",
                    metadata={"limit": str(_MAX_CREDENTIALS)},
                )
            tx.add(row)
        return _message(row)

    async def get(self, principal: Principal, name: str) -> credential_pb2.Credential:
        """GetCredential."""
        async with self._database.transaction() as tx:
            return _message(await load_credential(tx, principal, parse_credential(name)))

    async def list(
        self, principal: Principal, request: credential_service_pb2.ListCredentialsRequest
    ) -> credential_service_pb2.ListCredentialsResponse:
        """ListCredentials."""
        size = page_size(request.page_size)
        order = parse_order(request.order_by, CREDENTIAL_ORDER)
        after = self._pager.read(request, principal.user_id)
        query = CredentialQuery(
            reader=None if principal.role is Role.ADMIN else principal.user_id,
            owner=parse_user(request.owner, field="owner") if request.owner else None,
            order=order,
            after=None if after is None else order_values(order, after),
            limit=size + 1,
        )
        async with self._database.transaction() as tx:
            rows = await find_credentials(tx, query)
        found = fitting([_message(row) for row in rows[:size]])
        response = credential_service_pb2.ListCredentialsResponse(credentials=found)
        if len(rows) > len(found):
            last = rows[len(found) - 1]
            response.next_page_token = self._pager.issue(request, principal.user_id, order_key(last, order))
        return response

    async def update(
        self, principal: Principal, request: credential_service_pb2.UpdateCredentialRequest
    ) -> credential_pb2.Credential:
        """UpdateCredential."""
        credential_id = parse_credential(request.credential.name, field="credential.name")
        require_write(principal, "credentials.update")
        paths = settable_paths(request.update_mask, request.credential, _SETTABLE)
        async with self._database.transaction() as tx:
            row = await load_credential(tx, principal, credential_id, to_change="credentials.update")
            check_etag(request.credential.etag, row.revision, "credential")
            before = _message(row)
            wanted = _message(row)
            for path in paths:
                copy_path(request.credential, wanted, path)
            given = _value_of(wanted)
            _check(wanted, given or self._kept(principal, row, before, wanted))
            if wanted != before:
                _set(row, wanted)
                if given:
                    row.secret = self._box.seal(given.encode(), credential_name(row.id))
                row.revision += 1
                row.update_time = clock.utcnow()
            return _message(row)

    def _kept(
        self,
        principal: Principal,
        row: CredentialRow,
        before: credential_pb2.Credential,
        wanted: credential_pb2.Credential,
    ) -> str:
        """The value that stays when none is given; empty: it may not."""
        if wanted.WhichOneof("kind") != before.WhichOneof("kind"):
            return ""
        moved = (wanted.hosts, without_value(wanted)) != (before.hosts, without_value(before))
        if moved and row.owner != principal.user_id:
            # An admin who may change where it goes could read it there.
            raise InvalidArgument.field(
                "credential", "it is another's: whoever changes its hosts or kind has to give its value anew"
            )
        return self._box.open(row.secret, credential_name(row.id)).decode()

    async def delete(self, principal: Principal, name: str, etag: str) -> None:
        """DeleteCredential."""
        require_write(principal, "credentials.delete")
        async with self._database.transaction() as tx:
            row = await load_credential(tx, principal, parse_credential(name), to_change="credentials.delete")
            check_etag(etag, row.revision, "credential")
            await tx.delete(row)

    def _hash(self, request: credential_service_pb2.CreateCredentialRequest) -> bytes:
        """The request's hash, from which a short value cannot be guessed: it is stored in the clear."""
        content = credential_service_pb2.CreateCredentialRequest()
        content.CopyFrom(request)
        if (found := secret_field(content.credential)) is not None:
            kind, field = found
            value = getattr(getattr(content.credential, kind), field)
            setattr(getattr(content.credential, kind), field, hmac.digest(self._key, value.encode(), "sha256").hex())
        return request_hash(content)


async def load_credential(
    tx: Transaction, principal: Principal, credential_id: UUID, *, to_change: str = ""
) -> CredentialRow:
    """A credential that the caller may use; locked and his to change with `to_change`, such as `credentials.update`.

    Raises:
        NotFound: There is none, or he may not use it.
        PermissionDenied: He may, and not change it.
    """
    row = await (lock_credential(tx, credential_id) if to_change else tx.get(CredentialRow, credential_id))
    name = credential_name(credential_id)
    owner, shared = (None, False) if row is None else (row.owner, row.shared)
    if to_change:
        require_change(principal, owner, "Credential", name, shared=shared, permission=to_change)
    else:
        require_readable(principal, owner, "Credential", name, shared=shared)
    assert row is not None
    return row


def _value_of(credential: credential_pb2.Credential) -> str:
    found = secret_field(credential)
    return "" if found is None else str(getattr(getattr(credential, found[0]), found[1]))


def _check(credential: credential_pb2.Credential, value: str) -> None:
    faults = Faults()
    faults.title("credential.display_name", credential.display_name)
    faults.text("credential.description", credential.description, 4000)
    hosts = credential.hosts
    faults.check(1 <= len(hosts) <= _MAX_HOSTS, "credential.hosts", f"must have 1 to {_MAX_HOSTS} entries")
    for at, host in enumerate(hosts[:_MAX_HOSTS]):
        try:
            read_host_pattern(host)
        except ValueError as error:
            faults.add(f"credential.hosts[{at}]", f"{host[:80]!r}: {error}")
    for field, description in check_value(credential, value):
        faults.add(f"credential.{field}", description)
    faults.done()


def _set(row: CredentialRow, wanted: credential_pb2.Credential) -> None:
    """Put what callers set into a row, but the value."""
    row.display_name, row.description = wanted.display_name, wanted.description
    row.shared, row.hosts = wanted.shared, [str(check_destination(host)) for host in wanted.hosts]
    row.kind = without_value(wanted).SerializeToString(deterministic=True)


def _message(row: CredentialRow) -> credential_pb2.Credential:
    message = credential_pb2.Credential.FromString(row.kind)
    message.name = credential_name(row.id)
    message.display_name, message.description, message.shared = row.display_name, row.description, row.shared
    message.owner = user_name(row.owner)
    message.hosts.extend(row.hosts)
    message.etag = etag_of(row.revision)
    for name in ("last_used_time", "create_time", "update_time"):
        if (time := getattr(row, name)) is not None:
            getattr(message, name).FromDatetime(time)
    return message
