"""The methods of CredentialService."""

from agentrpc.rpc.methods import Service, emptied
from agentrpc.services.credentials import Credentials
from agentrpc.v1 import credential_service_pb2

__all__ = ["credential_service"]


def credential_service(credentials: Credentials) -> Service:
    """CredentialService."""
    return Service(
        credential_service_pb2.DESCRIPTOR.services_by_name["CredentialService"],
        {
            "CreateCredential": lambda call, r: credentials.create(call.principal, r),
            "GetCredential": lambda call, r: credentials.get(call.principal, r.name),
            "ListCredentials": lambda call, r: credentials.list(call.principal, r),
            "UpdateCredential": lambda call, r: credentials.update(call.principal, r),
            "DeleteCredential": emptied(lambda call, r: credentials.delete(call.principal, r.name, r.etag)),
        },
    )
