"""Reads the VOMS attributes in a proxy: groups and roles, and how long they last.

The signature is not verified here: that is for the site that grants something for it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.x509 import Certificate, ExtensionNotFound, ObjectIdentifier, UnrecognizedExtension

from khomas.kit.credentials.der import GENERALIZED_TIME, OCTETS, OID, SEQUENCE, Element, NotDer, elements

# https://www.ogf.org/documents/GFD.182.pdf: the sequence of attribute certificates, and the attribute with FQANs.
_CERTIFICATES = ObjectIdentifier("1.3.6.1.4.1.8005.100.100.5")
_FQANS = bytes.fromhex("2b06010401be45646404")

_TIME = "%Y%m%d%H%M%S%z"


@dataclass(frozen=True, slots=True)
class Attributes:
    """What one VOMS server says."""

    fqans: tuple[str, ...]
    not_before: datetime
    expires: datetime


def attributes(certificate: Certificate) -> list[Attributes]:
    """The attributes in a certificate. Raises `NotDer` when they cannot be read."""
    try:
        found = certificate.extensions.get_extension_for_oid(_CERTIFICATES).value
    except ExtensionNotFound:
        return []
    if not isinstance(found, UnrecognizedExtension):
        raise NotDer("the extension is not what it should be")
    try:
        return [_read(one) for outer in elements(found.value) for many in outer.children() for one in many.children()]
    except (IndexError, ValueError, RecursionError) as error:
        raise NotDer("the VOMS attributes cannot be read") from error


def _read(certificate: Element) -> Attributes:
    info = certificate.children()[0]
    begin, end = _period(info)
    return Attributes(tuple(_fqans(info)), begin, end)


def _period(info: Element) -> tuple[datetime, datetime]:
    for part in info.children():
        times = part.children() if part.tag == SEQUENCE else []
        if len(times) == 2 and all(time.tag == GENERALIZED_TIME for time in times):
            begin, end = (time.content.decode().replace("Z", "+0000") for time in times)
            return datetime.strptime(begin, _TIME).astimezone(UTC), datetime.strptime(end, _TIME).astimezone(UTC)
    raise NotDer("the validity is missing")


def _fqans(info: Element) -> list[str]:
    for attribute in info.walk():
        parts = attribute.children() if attribute.tag == SEQUENCE else []
        if parts and parts[0] == Element(OID, _FQANS):
            return [one.content.decode() for part in parts[1:] for one in part.walk() if one.tag == OCTETS]
    return []
