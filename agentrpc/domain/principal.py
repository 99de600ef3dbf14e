"""Who is calling."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

__all__ = ["Principal", "Role"]


class Role(StrEnum):
    """`agentrpc.v1.User.Role`."""

    VIEWER = "VIEWER"
    USER = "USER"
    ADMIN = "ADMIN"


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose token was good.

    Attributes:
        user_id: The user.
        role: What the user may do.
        login_id: The login that the token belongs to.
        expire_time: When the token expires.
    """

    user_id: UUID
    role: Role
    login_id: UUID
    expire_time: datetime
