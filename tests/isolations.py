"""How this machine can keep process trees apart."""

import shutil
import tempfile
from pathlib import Path

import pytest

from agentrpc.claude.agent_users import user_trouble
from agentrpc.claude.launcher import Isolation, IsolationError, choose_isolation
from agentrpc.settings import DEFAULT_UIDS


def usable_isolation():
    """The best that works here."""
    try:
        return choose_isolation("auto")[0]
    except IsolationError:
        return Isolation.SUBREAPER


bubblewrap = pytest.mark.skipif(usable_isolation() is not Isolation.BUBBLEWRAP, reason="bubblewrap does not work here")
users = pytest.mark.skipif(
    (trouble := user_trouble(DEFAULT_UIDS)) is not None, reason=f"the isolation `user` does not work here: {trouble}"
)


def isolations():
    """Parameters of a test for each that needs no more than folders."""
    return [pytest.param(Isolation.BUBBLEWRAP, marks=bubblewrap), Isolation.SUBREAPER]


@pytest.fixture
def passable():
    """A folder in which other users get to what is open to them; pytest's own ones let nobody pass."""
    folder = Path(tempfile.mkdtemp(prefix="agentrpc-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)
