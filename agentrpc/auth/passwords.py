"""Password hashes: argon2id through passlib, off the event loop and few at a time.

A hash takes about 130 ms and 64 MiB, which is its purpose (RFC 9106, section 4).
"""

import asyncio
import secrets
import warnings
from concurrent.futures import ThreadPoolExecutor

__all__ = ["hash_password", "new_password", "verify_password"]

with warnings.catch_warnings():
    # passlib 1.7.4 imports `crypt`, which Python 3.13 has no more, and reads argon2.__version__; both only at import.
    warnings.simplefilter("ignore", DeprecationWarning)
    from passlib.hash import argon2

    argon2.set_backend()

_few = ThreadPoolExecutor(max_workers=2, thread_name_prefix="argon2")
_UNKNOWN_USER = argon2.hash(secrets.token_hex(16))  # type: ignore[no-untyped-call]


async def hash_password(password: str) -> str:
    """The hash of a password, with its salt and parameters."""
    return str(await asyncio.get_running_loop().run_in_executor(_few, argon2.hash, password))


async def verify_password(password: str, password_hash: str | None) -> bool:
    """Whether the password is right. Without a hash, for an unknown user, it takes as long and is wrong."""
    loop = asyncio.get_running_loop()
    good = await loop.run_in_executor(_few, argon2.verify, password, password_hash or _UNKNOWN_USER)
    return bool(good) and password_hash is not None


def new_password() -> str:
    """A password that nobody has to remember: 120 random bits."""
    return secrets.token_urlsafe(15)
