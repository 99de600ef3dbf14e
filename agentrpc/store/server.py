"""A PostgreSQL of our own, before there is anything in it: its password, its databases."""

import asyncio

import asyncpg

__all__ = ["create_database", "set_password"]

_RELOADS = 200
_RELOAD_SECONDS = 0.025


async def set_password(url: str, password: str) -> None:
    """Set the password of the role `postgres` at a server that is about to let everybody in."""
    connection = await _connect_to(url)
    try:
        # Nobody guesses so long a password, however cheap a guess is, and connections are made all the time.
        await connection.execute("SET scram_iterations = 1")
        await connection.execute(f"ALTER ROLE postgres PASSWORD '{password}'")
    finally:
        await connection.close()


async def create_database(url: str, name: str) -> None:
    """Make the database `name` unless it is there."""
    connection = await asyncpg.connect(url)
    try:
        if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
            await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()


async def _connect_to(url: str) -> asyncpg.Connection:
    for _ in range(_RELOADS):
        try:
            return await asyncpg.connect(url)
        except asyncpg.InvalidPasswordError:
            # It has not read its new rules yet.
            await asyncio.sleep(_RELOAD_SECONDS)
    return await asyncpg.connect(url)
