"""Password hashes: argon2id, off the event loop and few at a time.

A hash takes about 130 ms and 64 MiB, which is its purpose (RFC 9106, section 4).
"""

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

__all__ = ["hash_password", "is_outdated", "new_password", "verify_password"]

# RFC 9106's second recommended option, written out: a new release of the library must not change what we store.
_hasher = PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=4, hash_len=32, salt_len=16)
_few = ThreadPoolExecutor(max_workers=2, thread_name_prefix="argon2")
_UNKNOWN_USER = _hasher.hash(secrets.token_hex(16))


async def hash_password(password: str) -> str:
    """The hash of a password, with its salt and parameters."""
    return await asyncio.get_running_loop().run_in_executor(_few, _hasher.hash, password)


async def verify_password(password: str, password_hash: str | None) -> bool:
    """Whether the password is right. Without a hash, for an unknown user, it takes as long and is wrong."""
    loop = asyncio.get_running_loop()
    good = await loop.run_in_executor(_few, _verify, password, password_hash or _UNKNOWN_USER)
    return good and password_hash is not None


def is_outdated(password_hash: str) -> bool:
    """Whether a hash was made with other parameters than today's: make a new one when the password is next known."""
    return _hasher.check_needs_rehash(password_hash)


def new_password() -> str:
    """A password that nobody has to remember: 120 random bits."""
    return secrets.token_urlsafe(15)


def _verify(password: str, password_hash: str) -> bool:
    try:
        return _hasher.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False
