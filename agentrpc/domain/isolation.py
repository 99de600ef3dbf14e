"""The levels of isolation, their order, and which of them a session needs."""

from enum import IntEnum

from agentrpc.v1 import session_pb2

__all__ = ["Level", "needed_level"]

_PREFIX = "ISOLATION_LEVEL_"
# What asks for less than these needs a network of its own, which only a sandbox has; credentials are added there.
_OPEN = {session_pb2.NetworkOptions.MODE_UNSPECIFIED, session_pb2.NetworkOptions.MODE_PUBLIC}


class Level(IntEnum):
    """A level of `agentrpc.v1.Session.IsolationLevel`; the stronger one is the greater number, also in the database."""

    NONE = 0
    USER = 1
    SANDBOX = 2

    @classmethod
    def of(cls, value: session_pb2.Session.IsolationLevel) -> "Level":
        """The level that a message names; UNSPECIFIED is NONE."""
        name = session_pb2.Session.IsolationLevel.Name(value).removeprefix(_PREFIX)
        return cls.NONE if name == "UNSPECIFIED" else cls[name]

    @classmethod
    def named(cls, name: str) -> "Level":
        """The level of this name, as settings have it: in small letters."""
        return cls[name.upper()]

    @property
    def value_in_messages(self) -> session_pb2.Session.IsolationLevel:
        """As messages have it."""
        return session_pb2.Session(isolation_level=f"{_PREFIX}{self.name}").isolation_level


def needed_level(options: session_pb2.SessionOptions, minimum: Level = Level.NONE) -> Level:
    """The least level of the worker that may carry out a session's runs.

    Args:
        options: The session's, with values of enums that are known.
        minimum: What the operator demands of all.
    """
    network = options.network
    fenced = network.mode not in _OPEN or network.denied or options.credentials
    return max(minimum, Level.of(options.isolation_level), Level.SANDBOX if fenced else Level.NONE)
