"""What is needed elsewhere is not deleted."""

from collections.abc import Sequence
from uuid import UUID

from agentrpc.domain.principal import Principal, Role
from agentrpc.errors import FailedPrecondition

__all__ = ["refuse_in_use"]

_SHOWN = 10


def refuse_in_use(principal: Principal, what: str, used_by: Sequence[tuple[str, UUID]]) -> None:
    """Raise IN_USE if something refers to what is to be deleted.

    Args:
        principal: The caller, who is told the names of what they may see.
        what: Such as `agent`.
        used_by: Names and owners of what refers to it.
    """
    if not used_by:
        return
    admin = principal.role is Role.ADMIN
    names = [name for name, owner in used_by if admin or owner == principal.user_id][:_SHOWN]
    by = ", ".join(names) if names else "what others have made"
    raise FailedPrecondition(
        f"the {what} is used by {by}: change or delete that first, or stop sharing the {what}",
        reason="IN_USE",
        metadata={"used_by": ",".join(names)},
    )
