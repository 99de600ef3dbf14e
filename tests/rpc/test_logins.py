"""Who guesses passwords is held up, and nobody else: not the user, not a neighbour, with Redis and without."""

import asyncio
from datetime import timedelta

import pytest

from agentrpc import clock
from agentrpc.errors import AgentRpcError
from agentrpc.rpc.bodies import peer_address
from agentrpc.services import accounts as module
from agentrpc.store.housekeeping import forget_logins
from agentrpc.work.scheduler import Scheduler

HERE, THERE = "ipv4:192.0.2.1", "ipv4:192.0.2.2"


@pytest.fixture
def accounts(edge, monkeypatch):
    """The use cases, with five failures a minute; what must tell nothing does so at once."""
    monkeypatch.setattr(edge.accounts._limits, "_per_minute", 5)
    monkeypatch.setattr(module, "_WARY_SECONDS", 0.0)
    return edge.accounts


@pytest.fixture(autouse=True)
def hashed(monkeypatch):
    """The passwords that were judged, which takes no time here."""
    seen = []

    async def verify(password, password_hash):
        seen.append(password)
        return password == "password" and password_hash is not None

    monkeypatch.setattr(module, "verify_password", verify)
    return seen


async def attempt(accounts, name, password="password", address=HERE):
    try:
        await accounts.login(name, password, address)
    except AgentRpcError as error:
        return error.reason
    return "OK"


async def guess(accounts, name, times, address=HERE):
    """Guess so often, one after the other; what came of it."""
    return [await attempt(accounts, name, f"guess {number}", address) for number in range(times)]


async def test_guessing_at_one_name_is_refused_after_some_and_locks_nobody_out(accounts, hashed):
    found = await guess(accounts, "vic", 45)
    assert found[:5] == ["CREDENTIALS_INVALID"] * 5
    assert set(found[5:]) == {"RATE_LIMITED"}
    assert len(hashed) == 5
    # Another name at the same address, and the same name at another.
    assert await attempt(accounts, "ann") == "OK"
    assert await attempt(accounts, "vic", address=THERE) == "OK"


async def test_a_name_that_is_guessed_at_from_everywhere_is_open_to_its_owner(accounts, hashed):
    for number in range(60):
        await guess(accounts, "vic", 2, address=f"ipv4:198.51.100.{number}")
    # All together have twenty; every further address has one.
    assert len(hashed) <= 20 + 60
    assert await attempt(accounts, "vic", address=THERE) == "OK"
    again = await guess(accounts, "vic", 3, address="ipv4:198.51.100.7")
    assert set(again) == {"RATE_LIMITED"}


async def test_an_address_that_tries_every_name_keeps_no_neighbour_out(accounts, hashed):
    for number in range(60):
        await guess(accounts, f"nobody-{number}", 1)
    # Names that there are not cost nothing any more.
    assert len(hashed) == 20
    assert await attempt(accounts, "bob") == "OK"
    assert await attempt(accounts, "ann", "wrong") == "RATE_LIMITED"
    # One wrong guess at a name is all that there is now from there.
    assert await attempt(accounts, "ann") == "RATE_LIMITED"
    assert await attempt(accounts, "ann", address=THERE) == "OK"


async def test_a_wary_answer_does_not_tell_which_names_there_are(accounts, monkeypatch):
    monkeypatch.setattr(module, "_WARY_SECONDS", 0.4)
    for number in range(20):
        await guess(accounts, f"nobody-{number}", 1)

    async def told(name):
        began = clock.monotonic()
        with pytest.raises(AgentRpcError) as caught:
            await accounts.login(name, "wrong", HERE)
        assert clock.monotonic() - began >= 0.4
        return caught.value.reason, caught.value.message, caught.value.retry_after

    answers = [await told(name) for name in ("nobody", "ann", "ann", "nobody")]
    assert len(set(answers)) == 1


async def test_where_a_user_has_logged_in_before_others_guesses_do_not_count(accounts):
    assert await attempt(accounts, "ann") == "OK"
    for number in range(30):
        await guess(accounts, "ann", 1, address=f"ipv4:198.51.100.{number}")
        await guess(accounts, f"nobody-{number}", 1)
    assert await guess(accounts, "ann", 3) == ["CREDENTIALS_INVALID"] * 3
    assert await attempt(accounts, "ann") == "OK"
    # There, too, five failures are all.
    await guess(accounts, "ann", 5)
    assert await attempt(accounts, "ann") == "RATE_LIMITED"


async def test_right_passwords_count_for_nothing(accounts):
    assert [await attempt(accounts, "ann", address=THERE) for _ in range(30)] == ["OK"] * 30
    found = await asyncio.gather(*(attempt(accounts, "bob") for _ in range(4)))
    assert found == ["OK"] * 4


async def test_guesses_at_once_are_no_more_than_guesses_in_turn(accounts, hashed):
    found = await asyncio.gather(*(attempt(accounts, "vic", f"guess {number}") for number in range(60)))
    assert found.count("CREDENTIALS_INVALID") == len(hashed) == 5


async def test_the_limits_hold_without_redis(accounts, redis_server, hashed):
    redis_server.stop()
    found = await guess(accounts, "vic", 30)
    assert found == ["CREDENTIALS_INVALID"] * 5 + ["RATE_LIMITED"] * 25
    assert await attempt(accounts, "ann") == "OK"
    assert await attempt(accounts, "vic", address=THERE) == "OK"


async def test_a_days_guesses_at_a_name_are_bounded(accounts, hashed, bus, monkeypatch):
    for _ in range(20):
        await guess(accounts, "vic", 5)
        # A minute later.
        for bucket in ("minute", "address", "name"):
            await _forget(bus, bucket)
    assert len(hashed) <= 50


async def _forget(bus, bucket):
    async for key in bus._redis.scan_iter(f"agentrpc:bucket:login:{bucket}:*"):
        await bus._redis.delete(key)


async def test_hashing_goes_by_turns_of_addresses(accounts, monkeypatch):
    monkeypatch.setattr(accounts._limits, "_per_minute", 10_000)
    order = []

    async def verify(password, password_hash):
        order.append(password)
        await asyncio.sleep(0.01)
        return False

    monkeypatch.setattr(module, "verify_password", verify)
    crowd = [asyncio.create_task(attempt(accounts, "vic", "crowd")) for _ in range(100)]
    async with asyncio.timeout(30):
        while len(order) < 2:  # noqa: ASYNC110 - it has no event of that
            await asyncio.sleep(0.01)
    await attempt(accounts, "ann", "one", THERE)
    assert order.index("one") < 90
    await asyncio.gather(*crowd)


async def test_peers_of_one_ipv6_network_are_onepeer_address():
    assert peer_address("ipv4:192.0.2.1:50000") == "ipv4:192.0.2.1"
    one, two = peer_address("ipv6:%5B2001:db8:1:2::1%5D:1"), peer_address("ipv6:[2001:db8:1:2:ffff::9]:2")
    assert one == two == "ipv6:2001:db8:1:2::/64"
    assert peer_address("ipv6:%5B::ffff:192.0.2.1%5D:1") == "ipv4:192.0.2.1"
    assert peer_address("unix:") == "unix"


# ---- Refresh ----


async def test_a_refresh_whose_answer_was_lost_is_repeated(accounts):
    first = (await accounts.login("ann", "password", HERE)).tokens
    lost = (await accounts.refresh(first.refresh_token)).tokens
    again = (await accounts.refresh(first.refresh_token)).tokens
    for tokens in (lost, again):
        assert await accounts.authenticate(tokens.access_token)
    # The successor is the same for both, and spent by one of them.
    newest = (await accounts.refresh(again.refresh_token)).tokens
    assert await accounts.authenticate(newest.access_token)
    assert await accounts.refresh(lost.refresh_token)


async def test_refreshing_at_once_keeps_the_login(accounts):
    first = (await accounts.login("ann", "password", HERE)).tokens
    pairs = await asyncio.gather(*(accounts.refresh(first.refresh_token) for _ in range(8)))
    for pair in pairs:
        assert await accounts.authenticate(pair.tokens.access_token)


async def test_reuse_ends_the_login_once_its_successor_was_used_or_the_time_is_over(edge, accounts):
    async def ended(token):
        with pytest.raises(AgentRpcError, match="has ended"):
            await accounts.refresh(token)

    first = (await accounts.login("ann", "password", HERE)).tokens
    second = (await accounts.refresh(first.refresh_token)).tokens
    third = (await accounts.refresh(second.refresh_token)).tokens
    await ended(first.refresh_token)
    await ended(third.refresh_token)
    with pytest.raises(AgentRpcError):
        await accounts.authenticate(third.access_token)
    first = (await accounts.login("ann", "password", HERE)).tokens
    second = (await accounts.refresh(first.refresh_token)).tokens
    async with edge.database.connection() as connection:
        await connection.execute("UPDATE logins SET refresh_time = refresh_time - interval '31 seconds'")
    await ended(first.refresh_token)
    await ended(second.refresh_token)


async def test_logins_that_have_expired_go_and_others_stay(edge, accounts):
    kept = (await accounts.login("ann", "password", HERE)).tokens
    for _ in range(3):
        await accounts.login("ann", "password", HERE)
    async with edge.database.connection() as connection:
        await connection.execute(
            "UPDATE logins SET expire_time = $1 WHERE id <> (SELECT min(id::text)::uuid FROM logins)",
            clock.utcnow() - timedelta(hours=2),
        )
        assert await forget_logins(edge.database, limit=2)
        assert not await forget_logins(edge.database, limit=2)
        assert await connection.fetchval("SELECT count(*) FROM logins") == 1
    assert await accounts.refresh(kept.refresh_token)


async def test_a_login_outlives_its_tokens_whichever_lives_longer(edge, accounts, monkeypatch):
    monkeypatch.setattr(edge.settings, "access_token_ttl", 90 * 86400.0)
    await accounts.login("ann", "password", HERE)
    async with edge.database.connection() as connection:
        assert await connection.fetchval("SELECT expire_time FROM logins") > clock.utcnow() + timedelta(days=89)


async def test_the_scheduler_clears_logins_away(edge, accounts):
    await accounts.login("ann", "password", HERE)
    async with edge.database.connection() as connection:
        await connection.execute("UPDATE logins SET expire_time = now() - interval '2 hours'")
        use_cases = edge.use_cases
        scheduler = Scheduler(edge.database, use_cases.approvals, None, None, use_cases.executions, use_cases.firing)
        await scheduler._keep_house()
        assert not await connection.fetchval("SELECT count(*) FROM logins")
