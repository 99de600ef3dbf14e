"""Reading from other databases on behalf of agents, whose statements are not to be trusted.

What bounds a statement: it is one, because it is prepared; it runs in a read-only transaction, on a connection of its
own that is closed behind it, so that nothing that it sets or locks is left; server and client bound its time, a cursor
its rows, and the server cuts each value before it is sent. What read-only transactions do not refuse (functions that
read the server's files, end other connections, or open new ones) the role has to forbid: give it few rights.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from sqlglot import Dialect

__all__ = ["QueryError", "QueryResult", "ToolDatabase"]

_CONNECT_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
_AT_ONCE = 4
_BATCH = 50
# What cannot be a subquery, but returns short texts.
_BARE = {"EXPLAIN", "SHOW"}
# Of columns of statistics, which may be arrays of anything: asyncpg reads them only when told how.
_UNREADABLE = ("anyarray", "anycompatiblearray")
# All that asyncpg raises for a statement, an argument or an answer.
_REFUSED = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    ValueError,
    OverflowError,
)


class QueryError(Exception):
    """A statement was refused or failed; the message is for whoever wrote it."""


@dataclass(slots=True)
class QueryResult:
    """What a query has returned.

    Attributes:
        columns: Their names.
        rows: Values as PostgreSQL writes them; None is NULL.
        complete: False: rows or parts of values were left out.
    """

    columns: list[str]
    rows: list[list[str | None]] = field(default_factory=list)
    complete: bool = True


class ToolDatabase:
    """One database that agents may read.

    Args:
        url: `postgresql://…`; never shown to anyone.
    """

    def __init__(self, url: str) -> None:
        # Takes a second to import, which only workers with such a database spend.
        from sqlglot.dialects.postgres import Postgres  # noqa: PLC0415

        self._dialect = Postgres()
        self._url = url
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def query(self, sql: str, *arguments: str, max_rows: int, max_bytes: int, timeout: float) -> QueryResult:
        """Run one query.

        Args:
            sql: A statement that returns rows.
            arguments: For its parameters $1, $2 …
            max_rows: More rows are left out.
            max_bytes: More than about so many are left out, within a value too.
            timeout: Seconds that it may take, without the time to connect.

        Raises:
            QueryError: It was refused, failed or took too long; or the database cannot be reached.
        """
        async with self._room, self._connection() as connection:
            try:
                async with asyncio.timeout(timeout + 1):
                    return await self._run(connection, sql, arguments, max_rows, max_bytes, timeout)
            except TimeoutError:
                raise QueryError(f"the query took longer than {timeout:g} s, and was stopped") from None
            except asyncpg.QueryCanceledError as error:
                raise QueryError(f"the query was stopped: {error}") from None
            except _REFUSED as error:
                raise QueryError(_told(error)) from None

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        try:
            connection = await asyncpg.connect(self._url, timeout=_CONNECT_SECONDS, statement_cache_size=0)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
            # Its text may name the address and the role.
            raise QueryError(f"the database cannot be reached now ({type(error).__name__})") from None
        try:
            yield connection
        finally:
            with contextlib.suppress(Exception):
                await connection.close(timeout=_CLOSE_SECONDS)
            connection.terminate()

    async def _run(
        self,
        connection: asyncpg.Connection,
        sql: str,
        arguments: Sequence[str],
        max_rows: int,
        max_bytes: int,
        timeout: float,
    ) -> QueryResult:
        await connection.execute("SET default_transaction_read_only = on")
        for name in _UNREADABLE:
            await connection.set_type_codec(name, schema="pg_catalog", encoder=str, decoder=str, format="text")
        async with connection.transaction(readonly=True):
            await connection.execute(f"SET LOCAL statement_timeout = {int(timeout * 1000)}")
            await connection.execute("SET LOCAL lock_timeout = '3s'")
            # As it was written, for errors that name places in it, and for its columns.
            statement = await connection.prepare(sql)
            columns = [attribute.name for attribute in statement.get_attributes()]
            if not columns:
                raise QueryError("only queries that return rows are taken: nothing can be set, begun or changed here")
            sql, bare = _parted(sql, self._dialect)
            if not bare:
                statement = await connection.prepare(_as_texts(sql, len(columns), max_bytes))
            return await _fetch(statement, columns, arguments, max_rows, max_bytes)


def _parted(sql: str, dialect: "Dialect") -> tuple[str, bool]:
    """One statement, which PostgreSQL has taken, without the semicolons behind it; and whether it is in `_BARE`."""
    from sqlglot import TokenError, TokenType  # noqa: PLC0415 - as above

    try:
        tokens = dialect.tokenize(sql)
    except TokenError:
        # What PostgreSQL takes and this does not know, such as `X'ff'` with other letters in it: as it is.
        return sql, False
    bare = bool(tokens) and tokens[0].text.upper() in _BARE
    while tokens and tokens[-1].token_type == TokenType.SEMICOLON:
        sql = sql[: tokens.pop().start]
    return sql, bare


def _as_texts(sql: str, columns: int, max_bytes: int) -> str:
    """The same query with every value as text, and cut, so that no row has more than about `max_bytes`."""
    limit = max(64, max_bytes // columns) + 1
    names = [f"c{number}" for number in range(columns)]
    values = ", ".join(f"left({name}::text, {limit})" for name in names)
    # The line break ends a comment that the query may end with.
    return f"SELECT {values} FROM (\n{sql}\n) AS q ({', '.join(names)})"  # noqa: S608 - that is its use


async def _fetch(
    statement: Any,  # noqa: ANN401 - the driver has no types
    columns: list[str],
    arguments: Sequence[str],
    max_rows: int,
    max_bytes: int,
) -> QueryResult:
    result = QueryResult(columns)
    size, limit = 0, max(64, max_bytes // len(columns))
    cursor = await statement.cursor(*arguments)
    while batch := await cursor.fetch(min(_BATCH, max_rows + 1 - len(result.rows))):
        for row in batch:
            values = [None if value is None else str(value) for value in row]
            size += sum(len(value.encode()) for value in values if value is not None)
            if len(result.rows) == max_rows or (result.rows and size > max_bytes):
                result.complete = False
                return result
            result.complete &= all(value is None or len(value) <= limit for value in values)
            result.rows.append([None if value is None else value[:limit] for value in values])
    return result


def _told(error: Exception) -> str:
    """What PostgreSQL says of a statement."""
    text = f"{getattr(error, 'sqlstate', None) or 'error'}: {error}"
    hint = getattr(error, "hint", None)
    return f"{text} ({hint})" if hint else text
