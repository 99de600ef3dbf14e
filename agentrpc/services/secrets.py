"""Secrets of callers, encrypted at rest: signing secrets of webhooks, environment, headers and URLs of MCP servers.

Fernet (AES-128-CBC with HMAC-SHA256) has no room for associated data, so the place that a secret belongs to is
encrypted with it: what was sealed for one row does not open in another.
"""

from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr

from agentrpc.domain.mcp_config import open_secrets, seal_secrets
from agentrpc.errors import FailedPrecondition
from agentrpc.v1 import session_pb2

__all__ = ["SecretBox"]

# The place of what is in options: these are copied from agents and tasks to sessions, and from session to session.
_OPTIONS = "options"


class SecretBox:
    """Seals and opens secrets.

    Args:
        keys: Fernet keys, checked. The first seals, all open; none: nothing can be sealed.
    """

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        self._fernet = MultiFernet([Fernet(key.get_secret_value()) for key in keys]) if keys else None

    def require(self) -> None:
        """Raise NOT_CONFIGURED unless secrets can be stored."""
        self._opened()

    def seal(self, secret: bytes, place: str) -> bytes:
        """Encrypt a secret for one place, such as `webhooks/{id}`. Raises NOT_CONFIGURED."""
        return self._opened().encrypt(place.encode() + b"\0" + secret)

    def open(self, sealed: bytes, place: str) -> bytes:
        """The secret again.

        Raises:
            FailedPrecondition: NOT_CONFIGURED. No key that is configured opens it, or it is not of this place.
        """
        try:
            found, _, secret = self._opened().decrypt(sealed).partition(b"\0")
        except InvalidToken:
            found, secret = b"", b""
        if found != place.encode():
            raise _not_configured("no key of AGENTRPC_SECRET_KEYS opens this secret: add the one it was stored with")
        return secret

    def seal_options(self, options: session_pb2.SessionOptions) -> None:
        """Seal the secrets of inline MCP servers in options that are about to be stored. Raises NOT_CONFIGURED."""
        for server in options.mcp_servers:
            seal_secrets(server, lambda value: self.seal(value.encode(), _OPTIONS).decode())

    def open_options(self, options: session_pb2.SessionOptions) -> None:
        """Open the secrets of stored options. Raises NOT_CONFIGURED."""
        for server in options.mcp_servers:
            open_secrets(server, lambda value: self.open(value.encode(), _OPTIONS).decode())

    def _opened(self) -> MultiFernet:
        if self._fernet is None:
            raise _not_configured("secrets cannot be stored: the operator has to set AGENTRPC_SECRET_KEYS")
        return self._fernet


def _not_configured(message: str) -> FailedPrecondition:
    return FailedPrecondition(message, reason="NOT_CONFIGURED", metadata={"setting": "AGENTRPC_SECRET_KEYS"})
