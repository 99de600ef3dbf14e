"""Password hashes: those of earlier releases stay good, and are made anew when their parameters are old."""

import pytest

from agentrpc.auth.passwords import hash_password, is_outdated, verify_password

PASSWORD = "correct horse ü"
# As passlib 1.7.4 wrote them, with its defaults and with weaker parameters.
EARLIER = "$argon2id$v=19$m=65536,t=3,p=4$cA7BeC8FQIhxTsk5p5SS0g$q/7xKNkhcWX0WMz1+jC5A1MgNPoUxXc4teVGfFBVy28"
WEAKER = "$argon2id$v=19$m=8192,t=1,p=1$P4cwBuBca+09B4AQIiQkpA$w4XwyfVbsZmB+AKVWOKsa+vKam8H/3ldk66bv6uyb/w"


@pytest.mark.parametrize("stored", [EARLIER, WEAKER])
async def test_hashes_of_earlier_releases_stay_good(stored):
    assert await verify_password(PASSWORD, stored)
    assert not await verify_password(PASSWORD + "x", stored)


async def test_only_those_with_other_parameters_are_outdated():
    hashed = await hash_password(PASSWORD)
    assert hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert await verify_password(PASSWORD, hashed)
    assert [is_outdated(each) for each in (hashed, EARLIER, WEAKER)] == [False, False, True]


async def test_an_unknown_user_and_a_hash_that_is_none_are_wrong():
    assert not await verify_password(PASSWORD, None)
    assert not await verify_password(PASSWORD, "no hash")
    assert not await verify_password(PASSWORD, EARLIER[:-5])
