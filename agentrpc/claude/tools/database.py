"""Reading a database that the operator has configured."""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from agentrpc.claude.tools import Arguments, Tool, schema

__all__ = ["Query", "QueryRows", "database_tools"]

_MAX_SQL = 32 * 1024
_TABLES = """
SELECT quote_ident(n.nspname) AS schema, quote_ident(c.relname) AS name,
       CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'v' THEN 'view'
                      WHEN 'm' THEN 'materialized view' ELSE 'foreign table' END AS kind,
       CASE WHEN c.reltuples >= 0 THEN c.reltuples::bigint END AS rows_about,
       obj_description(c.oid, 'pg_class') AS comment
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition
   AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%'
   AND ($1::text = '' OR n.nspname = $1::text OR quote_ident(n.nspname) = $1::text)
   AND has_schema_privilege(n.oid, 'USAGE') AND has_any_column_privilege(c.oid, 'SELECT')
 ORDER BY n.nspname, c.relname
"""
# What SQL calls the table that a list calls so, or an unquoted name means.
_QUOTED = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
   AND ($1::text = n.nspname || '.' || c.relname OR $1::text = c.relname AND pg_table_is_visible(c.oid))
 ORDER BY $1::text = c.relname DESC
"""
_COLUMNS = """
SELECT quote_ident(a.attname) AS column, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS not_null,
       pg_get_expr(d.adbin, d.adrelid) AS default, col_description(a.attrelid, a.attnum) AS comment
  FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attrelid = to_regclass($1::text) AND a.attnum > 0 AND NOT a.attisdropped
   AND has_column_privilege(a.attrelid, a.attnum, 'SELECT')
 ORDER BY a.attnum
"""
_KEYS = """
SELECT conname AS name, pg_get_constraintdef(oid) AS definition
  FROM pg_constraint WHERE conrelid = to_regclass($1::text)
 UNION ALL
SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid)
  FROM pg_index i
 WHERE i.indrelid = to_regclass($1::text)
   AND NOT EXISTS (SELECT 1 FROM pg_constraint c WHERE c.conindid = i.indexrelid AND c.conrelid = i.indrelid)
 ORDER BY 1
"""


class QueryRows(Protocol):
    """What a query returns.

    Attributes:
        columns: Their names.
        rows: Values as text; None is NULL.
        complete: False: something was left out.
    """

    columns: list[str]
    rows: list[list[str | None]]
    complete: bool


# One read-only statement with its arguments; raises ToolError.
Query = Callable[[str, Sequence[str]], Awaitable[QueryRows]]


def database_tools(query: Query) -> list[Tool]:
    """The tools of one database, whose limits `query` keeps."""

    async def run(given: Arguments) -> str:
        return _text(await query(given["sql"], ()))

    async def tables(given: Arguments) -> str:
        return _text(await query(_TABLES, [given.get("schema", "")]))

    async def table(given: Arguments) -> str:
        quoted = (await query(_QUOTED, [given["table"]])).rows
        name = (quoted[0][0] if quoted else None) or given["table"]
        columns = await query(_COLUMNS, [name])
        if not columns.rows:
            return f"there is no table {given['table']!r} that you may read: see list_tables"
        return f"{_text(columns)}\n\n{_text(await query(_KEYS, [name]))}"

    sql = {"type": "string", "minLength": 1, "maxLength": _MAX_SQL, "description": "One query, in PostgreSQL's SQL."}
    named = {"type": "string", "maxLength": 200, "description": 'The table, such as orders, shop.orders or "Orders".'}
    return [
        Tool(
            "query",
            "Runs one read-only query: SELECT, WITH, VALUES, TABLE, EXPLAIN or SHOW. The answer has the names of the "
            "columns in the first line and one row in each further one, as JSON; at its end what was left out.",
            schema({"sql": sql}, required=["sql"]),
            run,
        ),
        Tool(
            "list_tables",
            "Lists the tables and views that can be read, with estimated numbers of rows.",
            schema({"schema": {"type": "string", "maxLength": 200, "description": "Only of this schema."}}),
            tables,
        ),
        Tool(
            "describe_table",
            "Tells the columns of a table or view with their types, and its keys, checks and indexes.",
            schema({"table": named}, required=["table"]),
            table,
        ),
    ]


def _text(result: QueryRows) -> str:
    lines = [json.dumps(line, ensure_ascii=False) for line in [result.columns, *result.rows]]
    count = f"({len(result.rows)} rows)" if result.complete else f"({len(result.rows)} rows; more was left out)"
    return "\n".join([*lines, count])
