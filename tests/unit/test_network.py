"""Destinations are accepted in one form or refused with a reason, and nothing is public that only looks so."""

import ipaddress

import pytest

from agentrpc.domain.network import (
    NetworkMode,
    NetworkPolicy,
    check_destination,
    is_public,
    read_authority,
    read_host,
)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.com:443", "example.com:443"),
        ("*.Example.com", "*.example.com"),
        ("*.example.com:8443", "*.example.com:8443"),
        ("*.com", "*.com"),
        ("db", "db"),
        ("_srv.example.com", "_srv.example.com"),
        ("a--b.example", "a--b.example"),
        ("3com.example", "3com.example"),
        ("1.2.3.4.example", "1.2.3.4.example"),
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:1", "203.0.113.7:1"),
        ("203.0.113.7/32", "203.0.113.7"),
        ("203.0.113.0/24", "203.0.113.0/24"),
        ("203.0.113.0/24:65535", "203.0.113.0/24:65535"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("[2001:DB8:0:0::1]", "[2001:db8::1]"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443"),
        ("[2001:db8::/32]", "[2001:db8::/32]"),
        ("[2001:db8::/32]:443", "[2001:db8::/32]:443"),
        ("[2001:db8::1/128]", "[2001:db8::1]"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("*.bücher.example:443", "*.xn--bcher-kva.example:443"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("пример.example", "xn--e1afmkfd.example"),
        ("日本語abc.jp", "xn--abc-s08fl0dtz6h.jp"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
        (".".join(["a" * 49] * 5) + ".com", ".".join(["a" * 49] * 5) + ".com"),
    ],
)
def test_a_destination_has_one_form(text, form):
    destination = check_destination(text)
    assert str(destination) == form
    assert check_destination(form) == destination


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "missing"),
        (":443", "missing"),
        ("http://example.com", "no scheme"),
        ("https://example.com:443", "no scheme"),
        ("socks5://example.com", "no scheme"),
        ("//example.com", "no path"),
        ("example.com/", "no path"),
        ("example.com/path", "no path"),
        ("example.com:443/path", "a port is a number"),
        ("example.com?x", "letters, digits"),
        ("example.com#x", "letters, digits"),
        ("user@example.com", "no user"),
        ("user:pass@example.com", "no user"),
        ("example.com:", "a port is a number"),
        ("example.com:0", "a port is a number"),
        ("example.com:65536", "a port is a number"),
        ("example.com:99999", "a port is a number"),
        ("example.com:-1", "a port is a number"),
        ("example.com:+1", "a port is a number"),
        ("example.com:0443", "a port is a number"),
        ("example.com:4_4", "a port is a number"),
        ("example.com:https", "a port is a number"),
        ("example.com:\u0664\u0664", "a port is a number"),
        ("example.com:443:443", "brackets"),
        ("*", "PUBLIC"),
        ("*:443", "PUBLIC"),
        ("*.", "missing"),
        ("*.*.example.com", "only at the beginning"),
        ("a.*.example.com", "only at the beginning"),
        ("a*.example.com", "only at the beginning"),
        ("*a.example.com", "only at the beginning"),
        ("example.*", "only at the beginning"),
        ("*.203.0.113.7", "no subdomains"),
        (".example.com", "letters, digits"),
        ("a..example.com", "letters, digits"),
        ("example.com.", "dot at its end"),
        ("203.0.113.7.", "dot at its end"),
        ("-a.example.com", "hyphen"),
        ("a-.example.com", "hyphen"),
        ("a,b", "letters, digits"),
        ("a\\b", "letters, digits"),
        ("a%2eb", "letters, digits"),
        ("a\0b", "NUL"),
        ("a b", "blanks"),
        (" a.example", "blanks"),
        ("a.example\n", "blanks"),
        ("a\x7f.example", "control"),
        ("a\u00ad.example", "control"),
        ("a\u200b.example", "control"),
        ("a\u2028.example", "blanks"),
        ("a\u00a0b", "blanks"),
        ("a\ud800.example", "control"),
        ("localhost", "localhost"),
        ("LOCALHOST:80", "localhost"),
        ("*.localhost", "localhost"),
        ("a.localhost", "localhost"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("127.0.1", "127.0.0.1"),
        ("127.0.0.01", "127.0.0.1"),
        ("256.1.1.1", "neither a name nor an address"),
        ("1.2.3.4.5", "neither a name nor an address"),
        ("a.0x1", "neither a name nor an address"),
        ("a.1", "neither a name nor an address"),
        ("203.0.113.7/24", "write 203.0.113.0/24"),
        ("203.0.113.0/33", "from 0 to 32"),
        ("203.0.113.0/024", "from 0 to 32"),
        ("203.0.113.0/255.255.255.0", "no path"),
        ("203.0.113/24", "no address"),
        ("0x7f.0.0.0/8", "no path"),
        ("10/8", "no address"),
        ("2001:db8::1", "brackets"),
        ("2001:db8::/32", "brackets"),
        ("::1", "brackets"),
        ("[2001:db8::1", "brackets"),
        ("[2001:db8::1]443", "brackets"),
        ("[2001:db8::1]:", "a port is a number"),
        ("[]", "no address"),
        ("[example.com]", "no address"),
        ("[203.0.113.7]", "without"),
        ("[::ffff:203.0.113.7]", "203.0.113.7"),
        ("[::ffff:cb00:7107]", "203.0.113.7"),
        ("[fe80::1%eth0]", "zone"),
        ("[fe80::1%25eth0]", "zone"),
        ("[2001:db8::1/32]", "write 2001:db8::/32"),
        ("[2001:db8::/129]", "from 0 to 128"),
        ("\u0430pple.com", "mixes letters"),
        ("xn--pple-43d.com", "mixes letters"),
        ("*.xn--pple-43d.com", "mixes letters"),
        ("\u03bfrange.example", "mixes letters"),
        ("xn--zzzzzz.com", "no part of a domain"),
        ("xn--.com", "no part of a domain"),
        ("\uff47ithub.com", "no part of a domain"),
        ("github\u3002com", "no part of a domain"),
        ("\u2460.example", "no part of a domain"),
        ("a" * 64 + ".example", "at most 63"),
        ("\u00fc" * 63 + ".example", "no part of a domain"),
        (".".join(["a" * 49] * 5) + ".coop", "at most 253"),
        ("a." * 5000 + "com", "at most 253"),
    ],
)
def test_what_is_no_destination_is_refused_with_a_reason(text, why):
    with pytest.raises(ValueError, match=why.replace(".", r"\.")) as caught:
        check_destination(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "port", "read"),
    [
        ("example.com:443", None, ("example.com", 443)),
        ("Example.COM", 80, ("example.com", 80)),
        ("203.0.113.7:80", None, ("203.0.113.7", 80)),
        ("[2001:DB8::1]:443", None, ("2001:db8::1", 443)),
        ("[::1]", 80, ("::1", 80)),
        ("xn--pple-43d.com:1", None, ("xn--pple-43d.com", 1)),
    ],
)
def test_the_authority_of_a_request(text, port, read):
    assert read_authority(text, port) == read


@pytest.mark.parametrize(
    "text",
    ["example.com", "example.com:", ":443", "a@b:443", "[203.0.113.7]:80", "::1:443", "[::1]", "[::ffff:127.0.0.1]:80",
     "0x7f.1:80", "localhost:80", "a\0b:80", "b\u00fccher.example:80", "example.com.:80", "[::1%lo]:80", "*.example.com:80",
     "203.0.113.0/24:80", "a/b:80", "a:80#", ""],
)  # fmt: skip
def test_what_is_no_authority(text):
    with pytest.raises(ValueError, match=r"[a-z]"):
        read_authority(text)


def test_a_host_that_a_resolver_would_read_as_another_is_none():
    for text in (
        "0177.1",
        "0x7f000001",
        "1",
        "0",
        "127.1",
        "::ffff:7f00:1",
        "127.0.0.1 ",
        "\uff11.1.1.1",
        "1.1.1.1\0.example",
    ):
        with pytest.raises(ValueError, match=r"[a-z]"):
            read_host(text)


NOT_PUBLIC = """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.8.8.8 168.63.129.16
    169.254.0.1 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.8 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1
    198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 233.252.0.1 239.255.255.255 240.0.0.1 255.255.255.255
    :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:0:8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0.0.0.0
    64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::8.8.8.8 64:ff9b:1:ffff::1 100::1 100:0:0:1::1
    2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2::1 2001:10::1 2001:20::1 2001:30::1 2001:db8::1 2001:1ff::1
    2002::1 2002:7f00:1:: 2002:808:808::1 3fff::1 3fff:fff::1 4000::1 5f00::1 fc00::1 fd00::1 fd00:ec2::254 fd20:ce::254
    fe80::1 fe80::1%eth0 febf::1 fec0::1 feff::1 ff02::1 ff0e::1 2606:4700::5efe:127.0.0.1 2606:4700::5efe:808:808
    2606:4700::200:5efe:8.8.8.8 2606:4700::1111%eth0
""".split()  # noqa: SIM905

PUBLIC = """
    1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 93.184.216.34 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1 168.63.129.15
    168.63.129.17 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.1 192.0.3.1 192.167.255.255 192.169.0.0
    198.17.255.255 198.20.0.0 198.51.99.255 203.0.112.255 203.0.114.0 223.255.255.255
    2606:4700::1111 2001:200::1 2001:4860:4860::8888 2003::1 2a00:1450::1 3ffe::1 ::ffff:1.1.1.1 64:ff9b::1.1.1.1
    2606:4700::5eff:1
""".split()  # noqa: SIM905


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_what_is_not_public_in_any_clothes(address):
    assert not is_public(address)
    policy = NetworkPolicy(NetworkMode.PUBLIC)
    assert policy.by_name("a.example", 80) is None
    verdict = policy.by_address("a.example", 80, address)
    assert not verdict.allowed
    assert verdict.rule == f"{address} is not public"


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public(address):
    assert is_public(address)
    assert NetworkPolicy(NetworkMode.PUBLIC).by_address("a.example", 80, address).allowed


def policy(mode, allowed=(), denied=(), private=()):
    return NetworkPolicy(
        NetworkMode(mode),
        tuple(map(check_destination, allowed)),
        tuple(map(check_destination, denied)),
        tuple(map(ipaddress.ip_network, private)),
    )


def decide(policy, host, port, address=None):
    """As the proxy does: by the name, and if that decides nothing by the address."""
    verdict = policy.by_name(host, port)
    assert verdict is None or not verdict.allowed
    if verdict is None:
        verdict = policy.by_address(host, port, address or host)
    return verdict.rule if verdict.allowed else f"no: {verdict.rule}"


@pytest.mark.parametrize(
    ("host", "port", "address", "rule"),
    [
        ("example.com", 443, "1.1.1.1", "allowed example.com:443"),
        ("example.com", 80, "1.1.1.1", "no: not listed"),
        ("sub.example.com", 443, "1.1.1.1", "no: not listed"),
        ("example.org", 80, "1.1.1.1", "no: not listed"),
        ("a.example.org", 80, "1.1.1.1", "allowed *.example.org"),
        ("a.b.example.org", 1, "1.1.1.1", "allowed *.example.org"),
        ("aexample.org", 80, "1.1.1.1", "no: not listed"),
        ("example.org.evil", 80, "1.1.1.1", "no: not listed"),
        ("bad.example.org", 80, "1.1.1.1", "no: denied bad.example.org"),
        ("x.bad.example.org", 80, "1.1.1.1", "allowed *.example.org"),
        ("a.example.org", 25, "1.1.1.1", "no: denied *.example.org:25"),
        ("a.example.org", 80, "9.9.9.9", "no: denied 9.9.9.0/24"),
        ("a.example.org", 80, "::ffff:9.9.9.9", "no: denied 9.9.9.0/24"),
        ("a.example.org", 80, "64:ff9b::909:909", "no: denied 9.9.9.0/24"),
        ("a.example.org", 80, "127.0.0.1", "no: 127.0.0.1 is not public"),
        ("a.example.org", 80, "10.1.0.1", "allowed *.example.org"),
        ("a.example.org", 80, "::ffff:10.1.0.1", "allowed *.example.org"),
        ("a.example.org", 80, "10.2.0.1", "no: 10.2.0.1 is not public"),
        ("8.8.8.8", 53, None, "allowed 8.8.8.0/24"),
        ("8.8.9.8", 53, None, "no: not listed"),
        ("9.9.9.9", 53, None, "no: denied 9.9.9.0/24"),
        # A listed address is one that is asked for as such: any name may have it.
        ("evil.example", 53, "8.8.8.8", "no: not listed"),
        # A session's list opens nothing of the operator's.
        ("10.2.0.1", 80, None, "no: 10.2.0.1 is not public"),
        ("10.1.0.1", 80, None, "allowed 10.0.0.0/8"),
        ("127.0.0.1", 80, None, "no: not listed"),
        ("2606:4700::1", 443, None, "allowed [2606:4700::/32]:443"),
        ("2606:4700::1", 80, None, "no: not listed"),
    ],
)
def test_a_list(host, port, address, rule):
    listed = policy(
        "LISTED",
        ["example.com:443", "*.example.org", "8.8.8.0/24", "9.9.9.0/24", "10.0.0.0/8", "[2606:4700::/32]:443"],
        ["bad.example.org", "*.example.org:25", "9.9.9.0/24"],
        ["10.1.0.0/16"],
    )
    assert decide(listed, host, port, address) == rule


def test_names_that_are_not_listed_are_never_looked_up():
    listed = policy("LISTED", ["example.com", "8.8.8.0/24"])
    assert listed.by_name("secret.evil.example", 80) is not None
    assert listed.by_name("example.com", 80) is None
    assert policy("PUBLIC", denied=["evil.example"]).by_name("evil.example", 80) is not None


@pytest.mark.parametrize(
    ("host", "address", "rule"),
    [
        ("example.com", "1.1.1.1", "PUBLIC"),
        ("1.1.1.1", None, "PUBLIC"),
        ("evil.example", "1.1.1.1", "no: denied evil.example"),
        ("example.com", "6.6.6.6", "no: denied 6.6.6.6"),
        ("6.6.6.6", None, "no: denied 6.6.6.6"),
        ("example.com", "10.0.0.1", "no: 10.0.0.1 is not public"),
        ("example.com", "172.20.0.1", "private 172.20.0.0/16"),
        ("example.com", "172.20.6.6", "no: denied 172.20.6.0/24"),
        ("example.com", "64:ff9b::ac14:1", "private 172.20.0.0/16"),
        ("example.com", "fd12::1", "private fd12::/16"),
    ],
)
def test_public_with_exceptions(host, address, rule):
    public = policy("PUBLIC", [], ["evil.example", "6.6.6.6", "172.20.6.0/24"], ["172.20.0.0/16", "fd12::/16"])
    assert decide(public, host, 443, address) == rule


def test_none_is_none():
    nothing = policy("NONE", ["example.com", "8.8.8.8"], private=["0.0.0.0/0"])
    for host in ("example.com", "8.8.8.8", "127.0.0.1"):
        assert decide(nothing, host, 443) == "no: NONE"
        assert not nothing.by_address(host, 443, "8.8.8.8").allowed
