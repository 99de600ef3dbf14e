"""How this machine can keep process trees apart."""

import pytest

from agentrpc.claude.launcher import Isolation, IsolationError, choose_isolation


def usable_isolation():
    """The best that works here."""
    try:
        return choose_isolation("auto")[0]
    except IsolationError:
        return Isolation.SUBREAPER


bubblewrap = pytest.mark.skipif(usable_isolation() is not Isolation.BUBBLEWRAP, reason="bubblewrap does not work here")


def isolations():
    """Parameters of a test for each."""
    return [pytest.param(Isolation.BUBBLEWRAP, marks=bubblewrap), Isolation.SUBREAPER]
