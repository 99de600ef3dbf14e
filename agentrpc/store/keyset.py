"""Keyset pages in any order: what comes behind the last row of the page before."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, or_

__all__ = ["beyond", "in_order"]


def in_order(columns: Mapping[str, Any], order: Sequence[tuple[str, bool]]) -> list[ColumnElement[Any]]:
    """ORDER BY: (name of a column, descending), the last of which is unique."""
    return [columns[name].desc() if down else columns[name].asc() for name, down in order]


def beyond(columns: Mapping[str, Any], order: Sequence[tuple[str, bool]], after: Sequence[Any]) -> ColumnElement[bool]:
    """Rows behind a keyset whose directions may differ: (a > x) or (a = x and b > y).

    Args:
        columns: By name.
        order: As for `in_order`.
        after: The values of these columns in the last row of the page before.
    """
    clauses = []
    for at, (name, down) in enumerate(order):
        equal = [columns[before] == after[index] for index, (before, _) in enumerate(order[:at])]
        clauses.append(and_(*equal, columns[name] < after[at] if down else columns[name] > after[at]))
    return or_(*clauses)
