"""Access and refresh tokens: JWT (RFC 7519) with HS256, and the checks of RFC 8725."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

import jwt

from agentrpc import clock
from agentrpc.errors import Unauthenticated
from agentrpc.settings import Settings

__all__ = ["Claims", "TokenIssuer"]

_LEEWAY = 5
_REQUIRED = ["exp", "iat", "sub", "aud", "iss", "jti"]
Kind = Literal["access", "refresh"]


@dataclass(frozen=True, slots=True)
class Claims:
    """What a good token says: whose it is, of which login, which one, until when."""

    user_id: UUID
    login_id: UUID
    token_id: UUID
    expire_time: datetime


class TokenIssuer:
    """Signs and checks tokens.

    Args:
        settings: Key, issuer, audience.
    """

    def __init__(self, settings: Settings) -> None:
        self._key = settings.signing_key.get_secret_value()
        self._issuer = settings.token_issuer
        self._audience = settings.token_audience
        self._jwt = jwt.PyJWT(options={"enforce_minimum_key_length": True})

    def issue(self, kind: Kind, user_id: UUID, login_id: UUID, token_id: UUID, ttl: float) -> tuple[str, datetime]:
        """A token and when it expires."""
        now = clock.utcnow()
        expire = now + timedelta(seconds=ttl)
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": str(user_id),
            "sid": str(login_id),
            "jti": str(token_id),
            "kind": kind,
            "iat": now,
            "exp": expire,
        }
        return self._jwt.encode(claims, self._key, algorithm="HS256"), expire

    def check(self, token: str, kind: Kind) -> Claims:
        """What a token says.

        Raises:
            Unauthenticated: CREDENTIALS_EXPIRED, or CREDENTIALS_INVALID for anything else that is wrong with it.
        """
        try:
            claims = self._jwt.decode(
                token,
                self._key,
                algorithms=["HS256"],
                issuer=self._issuer,
                audience=self._audience,
                leeway=_LEEWAY,
                options={"require": _REQUIRED},
            )
            if claims.get("kind") != kind:
                raise jwt.InvalidTokenError
            return Claims(
                UUID(claims["sub"]),
                UUID(claims["sid"]),
                UUID(claims["jti"]),
                datetime.fromtimestamp(claims["exp"], UTC),
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated(
                "the token has expired: refresh it with RefreshToken, or log in again", reason="CREDENTIALS_EXPIRED"
            ) from None
        except (jwt.InvalidTokenError, ValueError, KeyError, TypeError):
            raise Unauthenticated(
                "the token is not good here: log in with AuthService.Login", reason="CREDENTIALS_INVALID"
            ) from None
