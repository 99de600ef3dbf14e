"""What becomes of the database's errors."""

import traceback

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from agentrpc.errors import StoreUnavailable


async def test_errors_do_not_quote_values(database):
    values = {"zero": 0, "prompt": "nobody's business"}
    statement = text("SELECT 1 / :zero, CAST(:prompt AS text)")
    with pytest.raises(DBAPIError, match="division by zero") as caught:
        async with database.transaction() as tx:
            await tx.execute(statement, values)
    assert "nobody's business" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "statement",
    [
        "DO $$ BEGIN SET LOCAL transaction_read_only = on; CREATE TABLE changed (); END $$",
        "DO $$ BEGIN RAISE disk_full; END $$",
    ],
)
async def test_a_database_that_takes_no_changes_is_unavailable(database, statement):
    with pytest.raises(StoreUnavailable) as caught:
        async with database.transaction() as tx:
            await tx.execute(text(statement))
    assert not caught.value.unsure
    with pytest.raises(StoreUnavailable):
        async with database.connection() as connection:
            await connection.execute(statement)
