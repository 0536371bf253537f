"""Signs the proxies with which FTS3 acts for us (RFC 3820)."""

from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.x509.oid import NameOID, ObjectIdentifier

_PROXY: Final = ObjectIdentifier("1.3.6.1.5.5.7.1.14")
# ProxyCertInfo: SEQUENCE { SEQUENCE { OID id-ppl-inheritAll } }.
_INHERIT_ALL: Final = bytes.fromhex("300c300a06082b06010505071501")
_SKEW: Final = timedelta(minutes=5)


def signed(request_pem: str, proxy_pem: bytes, lifetime: timedelta) -> tuple[str, datetime]:
    """Return a proxy for the key of a request with its chain, and its end, which is no later than that of ours.

    Raises ValueError when one of the two is not what it should be.
    """
    request = x509.load_pem_x509_csr(request_pem.encode())
    chain = x509.load_pem_x509_certificates(proxy_pem)
    key = serialization.load_pem_private_key(proxy_pem, None)
    if not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey):
        raise ValueError("the key of the proxy cannot sign")
    if not request.is_signature_valid:
        raise ValueError("the request of the server is not signed by its key")
    own, now, serial = chain[0], datetime.now(UTC), x509.random_serial_number()
    subject = x509.Name([*own.subject, x509.NameAttribute(NameOID.COMMON_NAME, str(serial))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(own.subject)
        .public_key(request.public_key())
        .serial_number(serial)
        .not_valid_before(now - _SKEW)
        .not_valid_after(min(now + lifetime, own.not_valid_after_utc))
        .add_extension(x509.UnrecognizedExtension(_PROXY, _INHERIT_ALL), critical=True)
        .add_extension(_USAGE, critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = "".join(one.public_bytes(serialization.Encoding.PEM).decode() for one in (certificate, *chain))
    return pem, certificate.not_valid_after_utc


_USAGE: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=True,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
