"""Tasks that a caller may see or change."""

from uuid import UUID

from agentrpc.domain.principal import Principal
from agentrpc.names import task_name
from agentrpc.services.access import require_change, require_readable
from agentrpc.store.database import Transaction
from agentrpc.store.tasks import TaskRow, lock_task

__all__ = ["change_task", "load_task"]


async def load_task(tx: Transaction, principal: Principal, task_id: UUID, *, lock: bool = False) -> TaskRow:
    """A task that the caller may see: one of their own, or a shared one. Raises NotFound."""
    row = await (lock_task(tx, task_id) if lock else tx.get(TaskRow, task_id, populate_existing=True))
    owner = row.owner if row is not None and row.delete_time is None else None
    shared = row is not None and row.shared
    require_readable(principal, owner, "Task", task_name(task_id), shared=shared)
    assert row is not None
    return row


async def change_task(tx: Transaction, principal: Principal, task_id: UUID, permission: str) -> TaskRow:
    """A task that the caller may change, locked. Raises NotFound and PermissionDenied."""
    row = await load_task(tx, principal, task_id, lock=True)
    require_change(principal, row.owner, "Task", task_name(task_id), shared=row.shared, permission=permission)
    return row
