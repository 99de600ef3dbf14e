"""Statements of agents against a real database: what is read, and what is refused, cut or stopped."""

import asyncio
import json
import time

import asyncpg
import pytest

from agentrpc.claude.tools.database import database_tools
from agentrpc.store.tool_database import QueryError, ToolDatabase

WIDE = ", ".join(f"repeat('é', 100000) AS c{n}" for n in range(50))


@pytest.fixture
async def shop(database_url):
    """A database with two tables, one of them with an odd name, and functions that write."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        """
        CREATE TYPE mood AS ENUM ('glad', 'sad');
        CREATE TABLE orders (id int PRIMARY KEY, what text NOT NULL, price numeric DEFAULT 1.50, at timestamptz);
        INSERT INTO orders SELECT n, 'thing ' || n, n * 1.10, '2026-01-01Z' FROM generate_series(1, 500) n;
        CREATE SEQUENCE numbers;
        CREATE FUNCTION sneak() RETURNS int LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO orders VALUES (0, 'sneaked'); RETURN 1; END $$;
        CREATE FUNCTION loosen() RETURNS int LANGUAGE plpgsql AS
            $$ BEGIN SET transaction_read_only = off; INSERT INTO orders VALUES (0, 'x'); RETURN 1; END $$;
        """
    )
    yield connection
    await connection.close()


@pytest.fixture
def ask(shop, database_url):
    """Runs a query: `await ask("SELECT 1")`."""
    database = ToolDatabase(database_url)

    async def ask(sql, *arguments, max_rows=200, max_bytes=64 * 1024, timeout=10.0):
        return await database.query(sql, *arguments, max_rows=max_rows, max_bytes=max_bytes, timeout=timeout)

    return ask


async def test_values_of_any_type_come_as_text(ask):
    found = await ask(
        "SELECT id, price, at, NULL AS id, 'glad'::mood, '{1,2}'::int[], '{\"a\": 1}'::jsonb, 'infinity'::timestamptz,"
        " row(1, 'x'), '\\x00ff'::bytea, int4range(1, 3), 1e300::float8, '1 month'::interval"
        " FROM orders WHERE id = $1::text::int; ",
        "2",
    )
    assert found.columns[:4] == ["id", "price", "at", "id"]
    assert found.rows[0][:2] == ["2", "2.20"]
    assert found.rows[0][3:] == [
        None, "glad", "{1,2}", '{"a": 1}', "infinity", "(1,x)", "\\x00ff", "[1,3)", "1e+300", "1 mon",
    ]  # fmt: skip
    assert found.complete


@pytest.mark.parametrize(
    "sql",
    ["VALUES (1)", "TABLE orders", "WITH a AS (SELECT 1) SELECT * FROM a -- the end", "EXPLAIN SELECT 1",
     "EXPLAIN ANALYZE SELECT * FROM orders", "SHOW server_version", "SELECT 1 ORDER BY 1 LIMIT 1",
     "-- plan of it\nEXPLAIN SELECT 1", "/* a /* b */; c */ explain (costs off) SELECT 1;", "--\n\n show all ; -- all",
     "SELECT * FROM orders LIMIT 2; -- top ones", "SELECT 1;;/* a; /* b */ ; */ ; -- it's; $$", "SELECT 1 /* ; */ -- ;",
     "SELECT X'1FF' ;-- bits", "((SELECT 1));"],
)  # fmt: skip
async def test_all_kinds_of_queries(ask, sql):
    assert (await ask(sql)).rows


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT 'a;' || $$;b$$ || $x$ ' $x$ || E'\\';' AS \";\" ; -- ' ;", [["a;;b ' ';"]]),
        ("SELECT 1 -- ;\n WHERE false", []),
        ("SELECT 1 /* ; */ WHERE false ; /* ; */", []),
        ("SELECT * FROM (VALUES ('x; -- y')) v;", [["x; -- y"]]),
        ("SELECT '\\'; -- a backslash", [["\\"]]),
    ],
)
async def test_a_semicolon_ends_a_statement_only_where_it_is_one(ask, sql, rows):
    assert (await ask(sql)).rows == rows


async def test_statistics_are_arrays_of_anything(ask, shop):
    await shop.execute("ANALYZE orders")
    found = await ask("SELECT attname, histogram_bounds FROM pg_stats WHERE tablename = 'orders' AND attname = 'id'")
    assert found.rows[0][0] == "id"
    assert found.rows[0][1].startswith("{1,")
    assert (await ask("SELECT NULL::anycompatiblearray, NULL::anyarray")).rows == [[None, None]]


@pytest.mark.parametrize(
    "name",
    ["User", '"User"', "public.User", 'public."User"', "Größe tab", "public.Größe tab", 'public."Größe tab"',
     "Odd.One", "public.Odd.One", '"Odd.One"', "Other Schema.User", '"Other Schema"."User"', "orders", "ORDERS"],
)  # fmt: skip
async def test_a_table_is_found_by_the_name_that_the_list_has_and_by_others_that_mean_it(ask, shop, name):
    await shop.execute(
        """
        CREATE SCHEMA "Other Schema";
        CREATE TABLE "User" ("Id" int PRIMARY KEY); CREATE TABLE "Größe tab" ("Id" int PRIMARY KEY);
        CREATE TABLE "Odd.One" ("Id" int PRIMARY KEY); CREATE TABLE "Other Schema"."User" ("Id" int PRIMARY KEY);
        """
    )

    async def query(sql, arguments):
        return await ask(sql, *arguments)

    tools = {tool.name: tool.call for tool in database_tools(query)}
    listed = [json.loads(line) for line in (await tools["list_tables"]({})).splitlines()[1:-1]]
    ours = [
        ['"Other Schema"', '"User"'], ["public", '"Größe tab"'], ["public", '"Odd.One"'], ["public", '"User"'],
        ["public", "orders"],
    ]  # fmt: skip
    assert [line[:2] for line in listed if line[:2] in ours] == ours
    for schema, table in ours:
        assert "PRIMARY KEY" in await tools["describe_table"]({"table": f"{schema}.{table}"})
        assert (await ask(f"TABLE {schema}.{table}")).columns
    told = await tools["describe_table"]({"table": name})
    assert ('["id"' if name.lower() == "orders" else r'["\"Id\""') in told
    assert "PRIMARY KEY" in told
    for schema in ("Other Schema", '"Other Schema"'):
        assert "(1 rows)" in await tools["list_tables"]({"schema": schema})


@pytest.mark.parametrize("sql", ["SELECT '\ud800'", "SELECT '\0'", "SELECT NULL::anyelement, 1 / 0", "SELECT $1::int"])
async def test_whatever_fails_is_told(ask, sql):
    with pytest.raises(QueryError, match=r"\w{5}"):
        await ask(sql)
    assert (await ask("SELECT 1")).rows == [["1"]]


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("SELECT 1; SELECT 2", "multiple commands"),
        ("SELECT 1; DROP TABLE orders", "multiple commands"),
        ("COMMIT; DELETE FROM orders", "multiple commands"),
        ("BEGIN", "rows"), ("COMMIT", "rows"), ("ROLLBACK", "rows"), ("SET transaction_read_only = off", "rows"),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE", "rows"), ("RESET ALL", "rows"), ("DISCARD ALL", "rows"),
        ("COPY orders TO '/tmp/x'", "rows"), ("COPY orders TO PROGRAM 'id'", "rows"), ("COPY orders FROM STDIN", "rows"),
        ("DO $$ BEGIN DELETE FROM orders; END $$", "rows"), ("LISTEN x", "rows"), ("VACUUM", "rows"), ("", "rows"),
        ("DELETE FROM orders", "rows"), ("DELETE FROM orders RETURNING id", "."),
        ("WITH gone AS (DELETE FROM orders RETURNING id) SELECT * FROM gone", "."),
        ("EXPLAIN ANALYZE DELETE FROM orders", "read-only"), ("SELECT sneak()", "read-only"),
        ("SELECT loosen()", "read-write mode"), ("SELECT nextval('numbers')", "read-only"),
        ("SELECT set_config('transaction_read_only', 'off', false), sneak()", "."),
        ("SELECT * FROM orders FOR UPDATE", "read-only"), ("CREATE TABLE x AS SELECT 1", "rows"),
        ("SELECT 1 AS q INTO other", "."), ("SELECT 1) AS q, (SELECT 2", "syntax"), ("SELECT 'x", "."),
        ("SELECT * FROM nowhere", "nowhere"), ("SELECT 1/0", "division"), ("SELECT", "rows"), ("nonsense", "syntax"),
        ("SELECT $1", "."), ("CALL sneak()", "."), ("EXECUTE x", "."), ("FETCH ALL FROM x", "."),
    ],
)  # fmt: skip
async def test_hostile_and_wrong_statements_are_refused_and_change_nothing(ask, shop, sql, why):
    with pytest.raises(QueryError, match=why):
        await ask(sql)
    assert await shop.fetchval("SELECT count(*) FROM orders") == 500


async def test_nothing_stays_behind_a_query(ask, shop):
    await ask("SELECT set_config('default_transaction_read_only', 'off', false), set_config('search_path', '', false)")
    await ask("SELECT pg_advisory_lock(7)")
    assert await shop.fetchval("SELECT pg_try_advisory_lock(7)")
    with pytest.raises(QueryError, match="read-only"):
        await ask("SELECT sneak()")


async def test_rows_and_bytes_are_limited(ask):
    found = await ask("SELECT * FROM orders ORDER BY id", max_rows=120)
    assert ([row[0] for row in found.rows], found.complete) == ([str(n) for n in range(1, 121)], False)
    assert (await ask("SELECT * FROM orders", max_rows=500)).complete
    found = await ask("SELECT repeat('x', 1000) FROM generate_series(1, 1000000)", max_rows=10_000, max_bytes=10_000)
    assert (len(found.rows), found.complete) == (10, False)
    found = await ask("SELECT repeat('x', 300 * 1024 * 1024)", max_bytes=1000)
    assert (found.rows, found.complete) == ([["x" * 1000]], False)
    found = await ask(f"SELECT {WIDE} FROM generate_series(1, 100)", max_bytes=64 * 1024)
    assert sum(len(value.encode()) for row in found.rows for value in row) <= 2 * 64 * 1024
    found = await ask("SELECT n FROM generate_series(1, 5) n WHERE false")
    assert (found.columns, found.rows, found.complete) == (["n"], [], True)


@pytest.mark.parametrize(
    "sql",
    ["SELECT pg_sleep(60)", "SELECT count(*) FROM generate_series(1, 1000000000000)",
     "SELECT set_config('statement_timeout', '0', false), pg_sleep(0.01 * n) FROM generate_series(1, 100000) n"],
)  # fmt: skip
async def test_a_long_query_is_stopped_on_the_server_too(ask, shop, sql):
    began = time.monotonic()
    with pytest.raises(QueryError, match=r"stopped|timeout"):
        await ask(sql, timeout=0.5)
    assert time.monotonic() - began < 10
    await _others(shop, 0)


async def test_a_query_whose_caller_goes_is_stopped(ask, shop):
    asking = asyncio.create_task(ask("SELECT pg_sleep(60)", timeout=50))
    await _others(shop, 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await _others(shop, 0)


async def _others(shop, wanted):
    """Wait until so many other statements are under way in the database."""
    sql = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND state = 'active'"
    )
    async with asyncio.timeout(10):
        while await shop.fetchval(sql) != wanted:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)


async def test_a_database_that_is_away_is_not_named(shop):
    with pytest.raises(QueryError) as caught:
        await ToolDatabase("postgresql://me:hush@127.0.0.1:9/secret").query(
            "SELECT 1", max_rows=1, max_bytes=1024, timeout=1
        )
    assert "cannot be reached" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("hush", "127", "secret"))
