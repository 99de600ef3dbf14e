"""What the operator and a session's options together let its agent reach."""

import pytest

from agentrpc.domain.network import NetworkMode
from agentrpc.errors import FailedPrecondition, InvalidArgument
from agentrpc.services.network import NetworkRules
from agentrpc.services.validation import check_session
from agentrpc.settings import Settings
from agentrpc.v1 import session_pb2


def rules(**settings):
    return NetworkRules(
        Settings(
            database_url="postgresql://x", redis_url="redis://x", signing_key="x" * 32,
            **{f"network_{name}": value for name, value in settings.items()},
        )
    )  # fmt: skip


def options(mode="MODE_UNSPECIFIED", **lists):
    return session_pb2.NetworkOptions(mode=mode, **lists)


def test_the_operator_decides_for_who_says_nothing():
    assert rules().policy(options()).mode is NetworkMode.PUBLIC
    assert rules(mode="NONE").policy(options()).mode is NetworkMode.NONE
    assert rules(mode="NONE").policy(options("MODE_PUBLIC")).mode is NetworkMode.PUBLIC


def test_nothing_is_more_than_the_ceiling_whenever_it_was_stored():
    low = rules(mode="NONE", ceiling="LISTED")
    with pytest.raises(InvalidArgument, match=r"session\.options\.network\.mode: is more than the operator allows"):
        low.check(options("MODE_PUBLIC"), "session.options.network")
    low.check(options("MODE_LISTED", allowed=["example.com"]), "session.options.network")
    policy = low.policy(options("MODE_PUBLIC"))
    assert policy.mode is NetworkMode.LISTED
    assert not policy.by_name("example.com", 443).allowed


def test_what_is_denied_to_all_comes_first():
    policy = rules(denied=["*.example.com"], private=["10.0.0.0/8"]).policy(options(denied=["example.org"]))
    assert [str(each) for each in policy.denied] == ["*.example.com", "example.org"]
    assert policy.by_address("example.net", 80, "10.1.2.3").allowed
    assert not policy.by_address("example.net", 80, "192.168.0.1").allowed


@pytest.mark.parametrize(
    ("settings", "asked", "needed"),
    [
        ({}, options(), False),
        ({}, options("MODE_PUBLIC"), False),
        ({}, options("MODE_NONE"), True),
        ({}, options("MODE_LISTED", allowed=["x.example"]), True),
        ({}, options(denied=["x.example"]), True),
        ({"mode": "NONE"}, options(), True),
        ({"denied": ["x.example"]}, options(), True),
    ],
)
def test_who_must_not_run_in_the_network_of_a_worker(settings, asked, needed):
    assert rules(**settings).needs_fence(asked) is needed


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"denied": ["http://example.com"]}, FailedPrecondition),
        ({"private": ["10.0.0.1/8"]}, ValueError),
        ({"mode": "PUBLIC", "ceiling": "NONE"}, ValueError),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, error):
    with pytest.raises(error):
        rules(**settings)


@pytest.mark.parametrize(
    ("network", "field"),
    [
        ({"allowed": ["example.com"]}, "allowed"),
        ({"mode": "MODE_NONE", "allowed": ["example.com"]}, "allowed"),
        ({"mode": "MODE_LISTED"}, "allowed"),
        ({"mode": "MODE_LISTED", "allowed": ["example.com", "example.com:0"]}, r"allowed\[1\]"),
        ({"denied": ["a\0b"]}, r"denied\[0\]"),
        ({"denied": ["x.example"] * 1001}, "denied"),
        ({"mode": 77}, "mode"),
    ],
)
def test_each_fault_names_its_field(network, field):
    session = session_pb2.Session(options=session_pb2.SessionOptions(network=options(**network)))
    with pytest.raises(InvalidArgument, match=rf"session\.options\.network\.{field}:"):
        check_session(session)
