"""The certificate authority of a deployment: one, for all workers."""

import asyncio

import pytest
from cryptography import x509
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import serialization
from cryptography.x509.verification import PolicyBuilder, Store
from pydantic import SecretStr

from agentrpc.errors import FailedPrecondition
from agentrpc.services.certificate_authority import load_authority
from agentrpc.services.secrets import SecretBox


def box():
    return SecretBox([SecretStr(Fernet.generate_key().decode())])


async def test_workers_that_begin_at_once_have_the_same(database):
    secrets = box()
    made = await asyncio.gather(*[load_authority(database, secrets) for _ in range(8)])
    assert len({authority.pem for authority in made}) == 1
    assert (await load_authority(database, secrets)).pem == made[0].pem
    # What one has issued, who trusts another believes.
    certificate = x509.load_pem_x509_certificate(made[3].issue("git.example.com"))
    store = Store([x509.load_pem_x509_certificate(made[5].pem.encode())])
    verifier = PolicyBuilder().store(store).build_server_verifier(x509.DNSName("git.example.com"))
    verifier.verify(certificate, [])
    with pytest.raises(x509.verification.VerificationError):
        PolicyBuilder().store(store).build_server_verifier(x509.DNSName("evil.example")).verify(certificate, [])


async def test_its_key_is_sealed(database):
    secrets = box()
    authority = await load_authority(database, secrets)
    private = authority._key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    number = authority._key.private_numbers().private_value.to_bytes(32, "big")
    async with database.connection() as connection:
        row = await connection.fetchrow("SELECT * FROM certificate_authority")
    assert private not in row["key"]
    assert number not in row["key"] + row["certificate"]
    with pytest.raises(FailedPrecondition) as caught:
        await load_authority(database, box())
    assert caught.value.reason == "NOT_CONFIGURED"


async def test_without_a_key_there_is_none(database):
    with pytest.raises(FailedPrecondition) as caught:
        await load_authority(database, SecretBox(()))
    assert caught.value.reason == "NOT_CONFIGURED"
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM certificate_authority") == 0


async def test_it_issues_for_servers_and_for_a_short_time(database):
    authority = await load_authority(database, box())
    root = x509.load_pem_x509_certificate(authority.pem.encode())
    leaf = x509.load_pem_x509_certificate(authority.issue("git.example.com"))
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.value.ca, constraints.value.path_length, constraints.critical) == (True, 0, True)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert (root.not_valid_after_utc - root.not_valid_before_utc).days > 3000
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).days <= 3
