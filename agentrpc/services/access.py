"""Who may do what, in one place: owners and admins; what is another's looks as if it did not exist."""

from uuid import UUID

from agentrpc.domain.principal import Principal, Role
from agentrpc.errors import NotFound, PermissionDenied

__all__ = ["require_change", "require_readable", "require_visible", "require_write", "visible_owner"]


def require_visible(principal: Principal, owner: UUID | None, resource_type: str, name: str) -> None:
    """Raise NotFound unless the resource exists and is the caller's, or the caller is an admin.

    Args:
        principal: The caller.
        owner: Its owner; None when it does not exist.
        resource_type: Such as `Session`.
        name: Its name.
    """
    if owner is None or (owner != principal.user_id and principal.role is not Role.ADMIN):
        raise NotFound(resource_type, name)


def require_readable(principal: Principal, owner: UUID | None, resource_type: str, name: str, *, shared: bool) -> None:
    """As `require_visible`, for what its owner may share with everyone."""
    if owner is None or not shared:
        require_visible(principal, owner, resource_type, name)


def require_change(
    principal: Principal, owner: UUID | None, resource_type: str, name: str, *, shared: bool, permission: str
) -> None:
    """Raise NotFound as `require_readable`, and PermissionDenied where only another may change it."""
    require_readable(principal, owner, resource_type, name, shared=shared)
    if owner != principal.user_id and principal.role is not Role.ADMIN:
        raise PermissionDenied(permission, "it is another's, who shares it: ask its owner, or create one of your own")


def require_write(principal: Principal, permission: str) -> None:
    """Raise PermissionDenied for callers that may only read. `permission` is such as `sessions.create`."""
    if principal.role is Role.VIEWER:
        raise PermissionDenied(permission)


def visible_owner(principal: Principal) -> UUID | None:
    """Whose resources a list holds: the caller's, or everyone's (None) for admins."""
    return None if principal.role is Role.ADMIN else principal.user_id
