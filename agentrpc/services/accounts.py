"""Users, logins and tokens.

A login is a family of refresh tokens of which only the newest is good: one that is used again was stolen or lost, and
ends the family (RFC 9700, section 4.14.2). Only the one before the newest may be used again for some seconds: the
answer to its first use may have been lost on the way.
"""

import asyncio
import hmac
from datetime import datetime, timedelta
from uuid import UUID

from agentrpc import clock
from agentrpc.auth.passwords import hash_password, is_outdated, new_password, verify_password
from agentrpc.auth.tokens import Claims, TokenIssuer
from agentrpc.bus.redis_bus import Bus
from agentrpc.domain.principal import Principal, Role
from agentrpc.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    StoreUnavailable,
    Unauthenticated,
)
from agentrpc.services.login_limits import LoginLimits, too_many
from agentrpc.services.views import user_message
from agentrpc.settings import Settings
from agentrpc.store.database import Database
from agentrpc.store.tables import Login, User
from agentrpc.store.users import add_user, count_users, has_logged_in_from, login_state, replace_password, user_by_name
from agentrpc.turns import Turns
from agentrpc.v1 import auth_pb2, auth_service_pb2

__all__ = ["Accounts"]

_CACHE_SECONDS = 10.0
_CACHE_SIZE = 10_000
_MAX_PASSWORD = 1024
# For how long a refresh token may be used once more.
_GRACE = timedelta(seconds=30)
# How long every answer to a failed attempt takes that must tell nothing.
_WARY_SECONDS = 1.0


class Accounts:
    """The use cases."""

    def __init__(self, database: Database, bus: Bus, settings: Settings) -> None:
        self._database = database
        self._bus = bus
        self._settings = settings
        self._issuer = TokenIssuer(settings)
        self._seen: dict[UUID, tuple[float, Role]] = {}
        self._limits = LoginLimits(bus, settings.login_attempts_per_minute)
        # A hash takes a core and 64 MiB: addresses take turns, and of a crowd at one the newest is next.
        self._hashing = Turns(2, per_key=2, waiting=200, newest_first=True)

    async def login(self, username: str, password: str, peer: str) -> auth_service_pb2.LoginResponse:
        """Login.

        Args:
            username: The name.
            password: The password.
            peer: The address of the caller, for the limits.

        Raises:
            Unauthenticated: CREDENTIALS_INVALID.
            ResourceExhausted: RATE_LIMITED, see `login_limits`.
        """
        began = clock.monotonic()
        name = username.strip().lower()
        address = self._address_id(peer)
        async with self._database.transaction() as tx:
            user = await user_by_name(tx, name)
            known = user is not None and await has_logged_in_from(tx, user.id, address)
        wary = True
        try:
            attempt = await self._limits.begin(name, peer, known=known, exists=user is not None)
            wary = attempt.wary
            async with self._hashing.take(peer):
                right = await verify_password(password[:_MAX_PASSWORD], user.password_hash if user else None)
            if not right or user is None:
                if wary:
                    raise too_many(None)
                raise Unauthenticated("the user name or the password is wrong", reason="CREDENTIALS_INVALID")
        except ResourceExhausted:
            if wary:
                await asyncio.sleep(began + _WARY_SECONDS - clock.monotonic())
            raise
        await self._limits.succeeded(attempt)
        login_id, refresh_id = clock.uuid7(), clock.uuid7()
        tokens = self._tokens(user.id, login_id, refresh_id)
        renewed = await hash_password(password[:_MAX_PASSWORD]) if is_outdated(user.password_hash) else None
        async with self._database.transaction() as tx:
            expire = self._expire_time()
            tx.add(Login(id=login_id, user_id=user.id, refresh_id=refresh_id, address=address, expire_time=expire))
            if renewed is not None:
                await replace_password(tx, user.id, user.password_hash, renewed)
        return auth_service_pb2.LoginResponse(tokens=tokens, user=user_message(user))

    async def refresh(self, token: str) -> auth_service_pb2.RefreshTokenResponse:
        """RefreshToken."""
        claims = self._issuer.check(token, "refresh")
        stolen = False
        async with self._database.transaction() as tx:
            login = await tx.get(Login, claims.login_id, with_for_update=True)
            user = await tx.get(User, claims.user_id)
            if login is None or login.end_time is not None or user is None or user.disable_time is not None:
                raise _ended()
            now = clock.utcnow()
            if login.refresh_id == claims.token_id:
                login.previous_id, login.refresh_id, login.refresh_time = login.refresh_id, clock.uuid7(), now
                login.expire_time = self._expire_time()
            elif (
                login.previous_id != claims.token_id or login.refresh_time is None or now - login.refresh_time > _GRACE
            ):
                login.end_time = now
                stolen = True
            # Used twice in a short time: both get the same successor, which is good once as before.
            refresh_id = login.refresh_id
        if stolen:
            self._seen.pop(claims.login_id, None)
            raise _ended()
        return auth_service_pb2.RefreshTokenResponse(tokens=self._tokens(claims.user_id, claims.login_id, refresh_id))

    async def me(self, principal: Principal) -> auth_pb2.User:
        """GetMe."""
        async with self._database.transaction() as tx:
            return user_message(await tx.get_one(User, principal.user_id))

    async def authenticate(self, token: str) -> Principal:
        """Who holds an access token.

        The state of user and login is looked up at most every ten seconds, and an old answer does while the database
        is away.

        Raises:
            Unauthenticated: The token is wrong or expired, the login has ended or the user is disabled.
        """
        claims = self._issuer.check(token, "access")
        seen = self._seen.get(claims.login_id)
        if seen is None or clock.monotonic() - seen[0] > _CACHE_SECONDS:
            try:
                seen = await self._look_up(claims)
            except StoreUnavailable:
                if seen is None:
                    raise
        return Principal(claims.user_id, seen[1], claims.login_id, claims.expire_time)

    async def still_allowed(self, principal: Principal) -> bool:
        """Whether the user may still read: not disabled, login not ended. True while the database is away."""
        try:
            await self._look_up(
                Claims(principal.user_id, principal.login_id, principal.login_id, principal.expire_time)
            )
        except Unauthenticated:
            return False
        except StoreUnavailable:
            return True
        return True

    async def create_user(self, username: str, password: str, role: Role) -> UUID:
        """Add a user. Raises FailedPrecondition when the name is taken, FIELD_INVALID for a bad name or password."""
        name = username.strip().lower()
        if not name or len(name) > 200 or "\0" in name:
            raise InvalidArgument.field("username", "must have 1 to 200 characters")
        if len(password) < 8 or len(password) > _MAX_PASSWORD:
            raise InvalidArgument.field("password", f"must have 8 to {_MAX_PASSWORD} characters")
        user_id = clock.uuid7()
        hashed = await hash_password(password)
        user = User(id=user_id, username=name, password_hash=hashed, role=role, create_time=clock.utcnow())
        if not await add_user(self._database, user):
            raise FailedPrecondition(
                f"the user name {name!r} is taken", reason="STATE_INVALID", metadata={"state": "EXISTS"}
            )
        return user_id

    async def ensure_admin(self, username: str = "admin", password: str | None = None) -> str | None:
        """Make the first user, if there is none; its password, or None when there are users already."""
        async with self._database.transaction() as tx:
            if await count_users(tx):
                return None
        password = password or new_password()
        await self.create_user(username, password, Role.ADMIN)
        return password

    async def _look_up(self, claims: Claims) -> tuple[float, Role]:
        async with self._database.transaction() as tx:
            state = await login_state(tx, claims.user_id, claims.login_id)
        if state is None or not state[1]:
            self._seen.pop(claims.login_id, None)
            raise _ended()
        if len(self._seen) >= _CACHE_SIZE:
            self._seen.clear()
        seen = (clock.monotonic(), Role(state[0]))
        self._seen[claims.login_id] = seen
        return seen

    def _tokens(self, user_id: UUID, login_id: UUID, refresh_id: UUID) -> auth_pb2.Tokens:
        access, access_expire = self._issuer.issue(
            "access", user_id, login_id, clock.uuid7(), self._settings.access_token_ttl
        )
        refresh, refresh_expire = self._issuer.issue(
            "refresh", user_id, login_id, refresh_id, self._settings.refresh_token_ttl
        )
        tokens = auth_pb2.Tokens(access_token=access, refresh_token=refresh)
        _set(tokens.access_expire_time, access_expire)
        _set(tokens.refresh_expire_time, refresh_expire)
        return tokens

    def _expire_time(self) -> datetime:
        """When a login is over that is not refreshed: not before any of its tokens."""
        longest = max(self._settings.refresh_token_ttl, self._settings.access_token_ttl)
        return clock.utcnow() + timedelta(seconds=longest)

    def _address_id(self, peer: str) -> bytes:
        """Stands for an address in the store, which need not know it."""
        key = self._settings.signing_key.get_secret_value().encode()
        return hmac.digest(key, b"address of a login\0" + peer.encode(), "sha256")[:16]


def _ended() -> Unauthenticated:
    return Unauthenticated("the login has ended: log in again with AuthService.Login", reason="CREDENTIALS_INVALID")


def _set(out: object, value: datetime) -> None:
    out.FromDatetime(value)  # type: ignore[attr-defined]  # a Timestamp
