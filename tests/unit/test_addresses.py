"""Which addresses are called, and how secrets are kept."""

import asyncio
import socket
import threading

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr, ValidationError

from agentrpc.errors import FailedPrecondition, InvalidArgument
from agentrpc.services.addresses import any_addresses, check_url, public_addresses
from agentrpc.services.secrets import SecretBox
from agentrpc.services.validation import Faults
from agentrpc.settings import Settings


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f000001", "2130706433", "017700000001", "[::1]"])
async def test_spellings_of_this_machine_are_refused_when_they_are_called(host):
    with pytest.raises(InvalidArgument) as caught:
        await public_addresses(host.strip("[]"), 80)
    assert caught.value.reason == "ADDRESS_REFUSED"


async def test_slow_name_servers_hold_up_no_other_look_up(monkeypatch):
    """Neither of what callers name nor, in the loop's own threads, of the database's host."""
    release = threading.Event()
    original = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if host == "slow.invalid":
            release.wait(30)
        return original("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    slow = [asyncio.create_task(any_addresses("slow.invalid", 80)) for _ in range(20)]
    try:
        async with asyncio.timeout(5):
            assert await any_addresses("a.invalid", 80) == ["127.0.0.1"]
            assert await asyncio.get_running_loop().getaddrinfo("b.invalid", 80)
        assert not any(task.done() for task in slow)
    finally:
        release.set()
        await asyncio.gather(*slow)


async def test_a_name_that_nobody_can_have_has_no_addresses():
    with pytest.raises(OSError, match="nobody can have"):
        await any_addresses(f"{'a' * 64}.invalid", 80)


@pytest.mark.parametrize(
    "url",
    ["", "x", "ftp://a.example", "http://", "http://a b", "http://a.example/\n", "http://a.example:99999", "http://[::1",
     "http://a.example#x", "http://ä.example", "http://a.example:0", "https://" + "a" * 3000],
)  # fmt: skip
def test_urls_that_are_none(url):
    faults = Faults()
    check_url("url", url, faults, allow_private=True)
    with pytest.raises(InvalidArgument, match="url:"):
        faults.done()


@pytest.mark.parametrize("url", ["http://127.0.0.1:80/x", "https://[::1]/", "http://localhost", "http://a.localhost/"])
def test_urls_of_private_hosts_are_refused_at_once(url):
    with pytest.raises(InvalidArgument, match="AGENTRPC_ALLOW_PRIVATE_ADDRESSES"):
        check_url("url", url, Faults(), allow_private=False)
    faults = Faults()
    check_url("url", url, faults, allow_private=True)
    faults.done()


def test_a_secret_opens_where_it_was_sealed_with_any_key_and_nowhere_else():
    old, new, other = (SecretStr(Fernet.generate_key().decode()) for _ in range(3))
    sealed = SecretBox([old]).seal(b"a\0b", "webhooks/1")
    assert b"a\0b" not in sealed
    assert SecretBox([new, old]).open(sealed, "webhooks/1") == b"a\0b"
    for box, place, data in [
        (SecretBox([new, old]), "webhooks/2", sealed),
        (SecretBox([other]), "webhooks/1", sealed),
        (SecretBox([old]), "webhooks/1", sealed[:-2] + b"AA"),
        (SecretBox([]), "webhooks/1", sealed),
    ]:
        with pytest.raises(FailedPrecondition) as caught:
            box.open(data, place)
        assert caught.value.reason == "NOT_CONFIGURED"
    with pytest.raises(FailedPrecondition, match="AGENTRPC_SECRET_KEYS"):
        SecretBox([]).seal(b"a", "webhooks/1")


def test_keys_come_from_the_environment_and_are_checked(monkeypatch):
    keys = [Fernet.generate_key().decode() for _ in range(2)]
    base = {"database_url": "postgresql://x", "redis_url": "redis://x", "signing_key": "k" * 32}
    monkeypatch.setenv("AGENTRPC_SECRET_KEYS", f"{keys[0]}, {keys[1]}")
    settings = Settings(**base)
    assert [key.get_secret_value() for key in settings.secret_keys] == keys
    assert keys[0] not in repr(settings)
    monkeypatch.setenv("AGENTRPC_SECRET_KEYS", "short")
    with pytest.raises(ValidationError, match="openssl"):
        Settings(**base)
