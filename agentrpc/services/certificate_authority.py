"""The certificate authority of a deployment, by whose certificates the egress proxy ends TLS for named hosts.

Made once, by whichever worker needs it first, and kept sealed in the store, so that all have the same. Only sandboxes
trust it, and only those of sessions with credentials. It has no name constraints: when it is made nobody knows which
hosts there will be, and whoever has its key sits between these sandboxes and the network already.
"""

from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agentrpc import clock
from agentrpc.services.secrets import SecretBox
from agentrpc.store.credentials import AuthorityRow, keep_authority
from agentrpc.store.database import Database

__all__ = ["LEAF_LIFE", "CertificateAuthority", "load_authority"]

_PLACE = "certificateAuthority"
_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=2)
# Clocks of machines differ.
_EARLIER = timedelta(days=1)


class CertificateAuthority:
    """Makes certificates.

    Args:
        certificate: Its own.
        key: Its key.
    """

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key
        # One for all certificates of this process, and in no file.
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())

    @property
    def pem(self) -> str:
        """Its certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, host: str) -> bytes:
        """A certificate for a host that is good for LEAF_LIFE from now on, with its key, as PEM."""
        public = self._leaf_key.public_key()
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        certificate = (
            _builder(public, LEAF_LIFE)
            # Names of hosts may be longer than a common name.
            .subject_name(_name("AgentRPC"))
            .issuer_name(self._certificate.subject)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(usage, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM) + self._leaf_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


async def load_authority(database: Database, box: SecretBox) -> CertificateAuthority:
    """The authority of this deployment, which is made if there is none.

    Raises:
        FailedPrecondition: NOT_CONFIGURED: there is no key to seal it with, or none that opens it.
    """
    async with database.transaction() as tx:
        row = await tx.get(AuthorityRow, 1)
    if row is None:
        certificate, key = _make()
        async with database.transaction() as tx:
            row = await keep_authority(tx, certificate, box.seal(key, _PLACE))
    private = serialization.load_der_private_key(box.open(row.key, _PLACE), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return CertificateAuthority(x509.load_der_x509_certificate(row.certificate), private)


def _make() -> tuple[bytes, bytes]:
    """A new certificate and its key, both as DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    name = _name("AgentRPC credentials")
    certificate = (
        _builder(public, _LIFE)
        .subject_name(name)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.DER), private


def _builder(public: ec.EllipticCurvePublicKey, life: timedelta) -> x509.CertificateBuilder:
    now = clock.utcnow()
    return (
        x509.CertificateBuilder()
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + life)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
