"""The host of a URL is what the WHATWG parser says, and what is not written plainly is allowed by no rule."""

import pytest

from agentrpc.domain.rules import Outcome, decide, parse_rule
from agentrpc.domain.url_rules import domain_fits, read_url


def outcome(url, *, allow=(), deny=(), **more):
    return decide(
        "WebFetch", {"prompt": "https://other.example/", "url": url, **more}, workspace="/w", mode="DEFAULT",
        allowed=[parse_rule(rule) for rule in allow], disallowed=[parse_rule(rule) for rule in deny],
    ).outcome  # fmt: skip


@pytest.mark.parametrize(
    "url",
    ["https://github.com", "https://github.com/x?y#z", "http://github.com/", "https://github.com:443/", "http://github.com:80/",
     "https://github.com:8443/x", "https://GitHub.com/", "HTTPS://github.com/", "https://github.com/\u00e9", "https://github.com?q=@evil.example"],
)  # fmt: skip
def test_plain_urls_of_a_host(url):
    assert read_url(url).host == "github.com"
    assert outcome(url, allow=["WebFetch(domain:github.com)"]) is Outcome.ALLOW
    assert outcome(url, allow=["WebFetch"], deny=["WebFetch(domain:github.com)"]) is Outcome.DENY
    assert outcome(url, allow=["WebFetch"], deny=["WebFetch(domain:evil.example)"]) is Outcome.ALLOW


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example\\@github.com/x", "https://user@github.com/", "https://user:pass@github.com/",
        "https://github.com\\.evil.example/", "https://github.com./", "https:/github.com/", "https:github.com",
        "https:///github.com/", " https://github.com/", "https://github.com/ x", "https://git\thub.com/",
        "https://github.com/\n", "https://git%68ub.com/", "https://github\u3002com/", "https://\uff47ithub.com/",
        "https://github.com%2f.evil.example/", "https://github.com%00/", "http://0x7f.1/", "http://2130706433/",
        "ftp://github.com/", "file:///etc/passwd", "javascript:alert(1)", "//github.com/", "github.com", "", "https://",
        "https://github.com:99999/", "https://\ud800.github.com/", None, 5, ["https://github.com/"],
    ],
)  # fmt: skip
def test_what_is_not_plain_is_allowed_by_no_rule_and_denied_by_every_rule_of_a_domain(url):
    assert outcome(url, allow=["WebFetch(domain:github.com)", "WebFetch(domain:*)"]) is Outcome.ASK
    assert outcome(url, allow=["WebFetch"], deny=["WebFetch(domain:nothing.example)"]) is Outcome.DENY
    assert outcome(url, allow=["WebFetch"]) is Outcome.ASK


@pytest.mark.parametrize(
    ("url", "host"),
    [("https://evil.example?@github.com", "evil.example"), ("https://evil.example#@github.com", "evil.example"),
     ("https://evil.example/@github.com", "evil.example"), ("https://github.com.evil.example/", "github.com.evil.example"),
     ("https://github.com@evil.example/", "evil.example"), ("https://evilgithub.com/", "evilgithub.com")],
)  # fmt: skip
def test_another_host_is_not_taken_for_an_allowed_one(url, host):
    assert read_url(url).host == host
    assert outcome(url, allow=["WebFetch(domain:github.com)"]) is Outcome.ASK


@pytest.mark.parametrize(
    ("pattern", "host", "fits"),
    [
        ("example.com", "example.com", True),
        ("example.com", "api.example.com", False),
        ("Example.COM.", "example.com", True),
        ("*.example.com", "api.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "evilexample.com", False),
        ("example.*", "example.org", True),
        ("example.*", "example.evil.com", False),
        ("api-*.example.com", "api-1.example.com", True),
        ("api-*.example.com", "api-1.evil.example.com", False),
        ("*", "a.example", True),
        ("b\u00fccher.example", "xn--bcher-kva.example", True),
        ("[::1]", "[::1]", True),
        ("exampleXcom", "example.com", False),
    ],
)
def test_patterns_of_domains(pattern, host, fits):
    assert domain_fits(pattern, host) is fits


def test_the_url_is_the_input_of_that_name():
    assert outcome("https://a.example/", allow=["WebFetch(domain:other.example)"]) is Outcome.ASK
    assert (
        outcome("https://a.example/", allow=["WebFetch(domain:a.example)"], deny=["WebFetch(domain:other.example)"])
        is Outcome.ALLOW
    )
    assert outcome("https://a.example/", allow=["WebFetch"], deny=["WebFetch(prompt:*other*)"]) is Outcome.DENY
