"""Queries over users and logins."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import exists, func, select, update
from sqlalchemy.exc import IntegrityError

from agentrpc.store.database import Database, Transaction
from agentrpc.store.tables import Login, User

__all__ = [
    "add_user",
    "count_users",
    "has_logged_in_from",
    "lock_user",
    "login_state",
    "replace_password",
    "user_by_name",
    "usernames",
]


async def user_by_name(tx: Transaction, username: str) -> User | None:
    """The user who logs in with a name and is not disabled."""
    if "\0" in username:
        # No name holds one, and the database does not take it.
        return None
    found: User | None = await tx.scalar(select(User).where(User.username == username, User.disable_time.is_(None)))
    return found


async def usernames(tx: Transaction, user_ids: Sequence[UUID]) -> dict[UUID, str]:
    """The names of users, by their ids."""
    rows = await tx.execute(select(User.id, User.username).where(User.id.in_(user_ids)))
    return {row[0]: row[1] for row in rows}


async def lock_user(tx: Transaction, user_id: UUID) -> None:
    """Let nobody else create something of this user's before the transaction ends."""
    await tx.execute(select(User.id).where(User.id == user_id).with_for_update(key_share=True))


async def login_state(tx: Transaction, user_id: UUID, login_id: UUID) -> tuple[str, bool] | None:
    """Role, and whether user and login are good; None when there is no such login."""
    statement = (
        select(User.role, User.disable_time, Login.end_time)
        .join(Login, Login.user_id == User.id)
        .where(User.id == user_id, Login.id == login_id)
    )
    row = (await tx.execute(statement)).one_or_none()
    return None if row is None else (row[0], row[1] is None and row[2] is None)


async def has_logged_in_from(tx: Transaction, user_id: UUID, address: bytes) -> bool:
    """Whether a user has a login from there that has not expired, ended or not. Index logins_by_address."""
    wanted = exists().where(Login.user_id == user_id, Login.address == address, Login.expire_time > func.now())
    return bool(await tx.scalar(select(wanted)))


async def count_users(tx: Transaction) -> int:
    """How many users there are."""
    return await tx.scalar(select(func.count()).select_from(User)) or 0


async def add_user(database: Database, user: User) -> bool:
    """Add a user; False when the name is taken."""
    try:
        async with database.transaction() as tx:
            tx.add(user)
    except IntegrityError:
        return False
    return True


async def replace_password(tx: Transaction, user_id: UUID, old: str, new: str) -> None:
    """Store another hash of a user's password, unless it is no longer the old one."""
    await tx.execute(update(User).where(User.id == user_id, User.password_hash == old).values(password_hash=new))
