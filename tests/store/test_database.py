"""What becomes of the database's errors."""

import traceback

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError


async def test_errors_do_not_quote_values(database):
    values = {"zero": 0, "prompt": "nobody's business"}
    statement = text("SELECT 1 / :zero, CAST(:prompt AS text)")
    with pytest.raises(DBAPIError, match="division by zero") as caught:
        async with database.transaction() as tx:
            await tx.execute(statement, values)
    assert "nobody's business" not in "".join(traceback.format_exception(caught.value))
