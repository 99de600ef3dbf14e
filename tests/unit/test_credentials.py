"""Credentials: hosts, headers, and what is masked of an answer."""

import base64
import random

import pytest

from agentrpc.domain.credentials import (
    HostIndex,
    Mask,
    check_value,
    header_of,
    read_host_pattern,
    secrets_of,
    without_value,
)
from agentrpc.v1 import credential_pb2

BEARER = credential_pb2.Credential(bearer=credential_pb2.BearerCredential(token="x"))


def credential(**kind):
    [(name, fields)] = kind.items()
    made = credential_pb2.Credential()
    getattr(made, name).SetInParent()
    for field, value in fields.items():
        setattr(getattr(made, name), field, value)
    return made


@pytest.mark.parametrize(
    ("text", "fits", "not_fits"),
    [
        ("Git.Example.com", [("git.example.com", 443)], [("git.example.com", 80), ("x.git.example.com", 443)]),
        ("*.example.com", [("a.example.com", 443), ("a.b.example.com", 443)], [("example.com", 443), ("aexample.com", 443)]),
        ("example.com:8443", [("example.com", 8443)], [("example.com", 443)]),
        ("gitserver", [("gitserver", 443)], [("a.gitserver", 443)]),
    ],
)  # fmt: skip
def test_a_pattern_names_hosts_at_one_port(text, fits, not_fits):
    pattern = read_host_pattern(text)
    assert all(pattern.fits(*place) for place in fits)
    assert not any(pattern.fits(*place) for place in not_fits)


@pytest.mark.parametrize(
    "text",
    [
        "", "*", "*.com", "*.*.example.com", "a.*.com", "203.0.113.7", "[2001:db8::1]", "203.0.113.0/24", "127.1",
        "0x7f000001", "https://example.com", "example.com/path", "user@example.com", "example.com:0", "example.com:65536",
        "example.com.", "exa mple.com", "example.com\0", "example.com\r\nx", "localhost", "a.localhost", "x" * 300,
    ],
)  # fmt: skip
def test_what_is_no_name_of_a_host_is_refused(text):
    with pytest.raises(ValueError, match=r"\w"):
        read_host_pattern(text)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a.com", "a.com", True), ("a.com", "a.com:443", True), ("a.com", "a.com:444", False), ("a.com", "b.com", False),
        ("*.a.com", "x.a.com", True), ("*.a.com", "a.com", False), ("*.a.com", "*.a.com", True),
        ("*.a.com", "*.b.a.com", True), ("*.a.com", "x.y.a.com", True), ("*.b.a.com", "x.a.com", False),
        ("*.b.a.com", "b.a.com", False), ("*.a.com", "xa.com", False), ("*.a.com:8443", "x.a.com", False),
    ],
)  # fmt: skip
def test_two_credentials_for_a_host_are_noticed_in_either_order(one, other, same):
    for first, second in ((one, other), (other, one)):
        index = HostIndex()
        assert index.add("first", read_host_pattern(first)) is None
        # Its own may overlap.
        assert index.add("first", read_host_pattern(first)) is None
        assert index.add("second", read_host_pattern(second)) == ("first" if same else None)


def test_headers_are_what_servers_take():
    assert header_of(BEARER, "tok") == ("Authorization", "Bearer tok")
    assert header_of(credential(header={"name": "X-Key"}), "v a") == ("X-Key", "v a")
    basic = base64.b64encode("me:pass wörd".encode()).decode()
    assert header_of(credential(basic={"username": "me"}), "pass wörd") == ("Authorization", f"Basic {basic}")
    git = base64.b64encode(b"x-access-token:tok").decode()
    assert header_of(credential(git={}), "tok") == ("Authorization", f"Basic {git}")
    gitlab = base64.b64encode(b"oauth2:tok").decode()
    assert header_of(credential(git={"username": "oauth2"}), "tok") == ("Authorization", f"Basic {gitlab}")


@pytest.mark.parametrize(
    ("kind", "value", "fields"),
    [
        ({"bearer": {}}, "ok", []),
        ({"bearer": {}}, "", ["bearer.token"]),
        ({"bearer": {}}, "a b", ["bearer.token"]),
        ({"bearer": {}}, "a\r\nX: y", ["bearer.token"]),
        ({"bearer": {}}, "ä", ["bearer.token"]),
        ({"bearer": {}}, "x" * 9000, ["bearer.token"]),
        ({"git": {"username": "a:b"}}, "x\0", ["git.token", "git.username"]),
        ({"basic": {"username": "me"}}, "pass wörd", []),
        ({"basic": {"username": "a\nb"}}, "a\nb", ["basic.password", "basic.username"]),
        ({"header": {"name": "X-Key"}}, "Token a b", []),
        ({"header": {"name": "Authorization"}}, "token x", []),
        ({"header": {"name": "X-Key"}}, " a", ["header.value"]),
        ({"header": {"name": "X-Key"}}, "a\r\nHost: b", ["header.value"]),
        ({"header": {"name": ""}}, "a", ["header.name"]),
        ({"header": {"name": "X Key"}}, "a", ["header.name"]),
        ({"header": {"name": "X-Key:"}}, "a", ["header.name"]),
        ({"header": {"name": "Host"}}, "a", ["header.name"]),
        ({"header": {"name": "transfer-encoding"}}, "a", ["header.name"]),
        ({"header": {"name": "Proxy-Authorization"}}, "a", ["header.name"]),
    ],
)
def test_what_no_header_may_hold_is_told(kind, value, fields):
    assert [field for field, _ in check_value(credential(**kind), value)] == fields


def test_a_credential_without_a_kind_is_told():
    assert [field for field, _ in check_value(credential_pb2.Credential(), "x")] == ["kind"]


def test_nothing_of_the_value_is_left_without_it():
    made = credential(header={"name": "X-Key", "value": "secret"})
    made.display_name = "a"
    assert without_value(made) == credential(header={"name": "X-Key"})


def test_whatever_pieces_an_answer_comes_in_no_secret_passes():
    secrets = secrets_of("Basic eDpzZWNyZXQtb25lIQ==", "secret one!")
    assert secrets == [b"eDpzZWNyZXQtb25lIQ==", b"secret one!"]
    dice = random.Random(7)
    parts = [*secrets, b"\n", b"secret", b"Basic ", b" one!", b"x", b"\r\n\r\n", b"\xff\0"]
    for _ in range(500):
        text = b"".join(dice.choice(parts) for _ in range(dice.randrange(1, 30)))
        mask, out, at = Mask(secrets), b"", 0
        while at < len(text):
            size = dice.choice([1, 2, 3, 7, 30])
            piece = mask.feed(text[at : at + size])
            out += piece
            at += size
        out += mask.end()
        assert len(out) == len(text)
        assert not any(secret in out for secret in secrets)
        assert out == Mask(secrets).whole(text)


def test_what_waits_does_not_depend_on_the_letters_of_the_secret():
    for text in (b"secret-to", b"xxxxxxxxx"):
        mask = Mask([b"secret-token"])
        assert mask.feed(b"line\n" + text) == b"line\n"
    assert Mask([b"secret-token"]).feed(b"line\n") == b"line\n"


def test_a_short_value_is_not_looked_for():
    assert secrets_of("Bearer abc", "abc") == []
    assert secrets_of("Token abcdefgh", "Token abcdefgh") == [b"Token abcdefgh", b"abcdefgh"]
    assert Mask([]).feed(b"abc") == b"abc"
