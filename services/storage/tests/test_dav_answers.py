"""What recorded answers of servers mean."""

import pytest

from khomas.storage.checksums import Algorithm
from khomas.storage.protocols.dav.answers import digests_of, failure_of, fault_of, hexadecimal
from khomas.storage.protocols.dav.listing import Multistatus, Resource
from khomas.storage.protocols.dav.protocol import plugin
from khomas.storage.protocols.interface import Access, Problem, ProtocolFault

APACHE = b"""<?xml version="1.0" encoding="utf-8"?>
<D:multistatus xmlns:D="DAV:" xmlns:ns0="DAV:">
<D:response xmlns:lp1="DAV:" xmlns:lp2="http://apache.org/dav/props/">
<D:href>/data/a%20b/</D:href><D:propstat><D:prop>
<lp1:resourcetype><D:collection/></lp1:resourcetype>
<lp1:getlastmodified>Sat, 21 Nov 2026 11:39:08 GMT</lp1:getlastmodified>
</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>
<D:response xmlns:lp1="DAV:" xmlns:lp2="http://apache.org/dav/props/">
<D:href>/data/a%20b/100%2541%20%26</D:href><D:propstat><D:prop>
<lp1:resourcetype/><lp1:getcontentlength>3</lp1:getcontentlength>
<lp1:getlastmodified>no time at all</lp1:getlastmodified>
</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>
</D:multistatus>
"""
XRDHTTP = b"""<?xml version="1.0" encoding="utf-8"?>
<D:multistatus xmlns:D="DAV:"><D:response xmlns:lp1="DAV:">
<D:href>/t/100%41 &lt;xml&gt;</D:href><D:propstat><D:prop><lp1:getcontentlength>12</lp1:getcontentlength></D:prop>
</D:propstat></D:response></D:multistatus>"""
LAUGHS = b"""<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;">]>
<D:multistatus xmlns:D="DAV:"><D:response><D:href>&c;</D:href></D:response></D:multistatus>"""


def parsed(document: bytes, *, size: int = 7, quoted: bool = True) -> list[Resource]:
    """Parse a document that arrives in small pieces."""
    parser = Multistatus(quoted=quoted)
    pieces = [document[start : start + size] for start in range(0, len(document), size)]
    found = [resource for piece in pieces for resource in parser.feed(piece)]
    return [*found, *parser.feed(b"", last=True)]


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_listing_is_the_same_in_pieces_of_any_size(size: int) -> None:
    folder, file = parsed(APACHE, size=size)
    assert (folder.path, folder.folder) == ("/data/a b/", True)
    assert folder.modify_time is not None
    assert folder.modify_time.isoformat() == "2026-11-21T11:39:08+00:00"
    assert (file.path, file.folder, file.number("getcontentlength")) == ("/data/a b/100%41 &", False, 3)
    assert file.modify_time is None


def test_listing_of_xrdhttp_is_not_quoted() -> None:
    (file,) = parsed(XRDHTTP, quoted=False)
    assert file.path == "/t/100%41 <xml>"


def test_listing_with_entities_is_refused() -> None:
    with pytest.raises(ProtocolFault, match="document type"):
        parsed(LAUGHS)


@pytest.mark.parametrize("document", [APACHE[:-30], b"", b"<html><p>no", b"\xff\xfe\x00"])
def test_listing_that_is_cut_off_is_no_listing(document: bytes) -> None:
    with pytest.raises(ProtocolFault) as caught:
        parsed(document)
    assert caught.value.problem is Problem.PASSING


@pytest.mark.parametrize(
    ("method", "status", "body", "problem"),
    [
        ("PUT", 507, "<html><head><title>507</title></head><body>Insufficient Storage</body></html>", Problem.FULL),
        ("PUT", 403, "Unable to create /x; permission denied", Problem.REFUSED),
        ("GET", 404, "", Problem.ABSENT),
        ("GET", 401, "", Problem.CREDENTIAL),
        ("GET", 503, "busy", Problem.PASSING),
        ("GET", 429, "", Problem.PASSING),
        ("MKCOL", 500, "Unable to mkdir /x/y/; not a directory\n", Problem.ABSENT),
        ("PUT", 500, "Unable to write; no space left on device", Problem.FULL),
        ("MOVE", 412, "", Problem.TAKEN),
        ("PROPFIND", 400, "Bad Request", Problem.ABSENT),
        ("GET", 400, "Bad Request", Problem.REFUSED),
        ("PROPFIND", 405, "", Problem.UNSUPPORTED),
    ],
)
def test_status_and_words_tell_the_problem(method: str, status: int, body: str, problem: Problem) -> None:
    fault = fault_of(method, status, body)
    assert fault.problem is problem
    assert "<" not in fault.message


@pytest.mark.parametrize(
    ("line", "problem", "other_end"),
    [
        ('Remote side failed with status code 404; error message: "Unable to open /x"', Problem.ABSENT, True),
        ('Remote side failed with status code 403; error message: "denied"', Problem.REFUSED, True),
        ("Couldn't connect to server", Problem.UNREACHABLE, True),
        ("Failed to write: no space left on device", Problem.FULL, False),
        ("Something else", Problem.PASSING, False),
    ],
)
def test_last_line_of_a_copy_tells_whose_fault_it_was(line: str, problem: Problem, other_end: bool) -> None:
    fault = failure_of(line)
    assert (fault.problem, fault.other_end) == (problem, other_end)


def test_digests_of_both_standards_are_read() -> None:
    assert digests_of("adler32=24900ee,md5=ZSAhPTaVo0TzBu//olI4Bw==", "") == {
        Algorithm.ADLER32: "024900ee",
        Algorithm.MD5: "6520213d3695a344f306efffa2523807",
    }
    assert digests_of("", "adler=:AkkA7g==:, sha-512=:AA==:") == {Algorithm.ADLER32: "024900ee"}
    assert digests_of("crc32c=zBRkBw==", "") == {}


@pytest.mark.parametrize("value", ["", "xyz", "0" * 9, ":AAA:", "zBRkB"])
def test_digest_of_another_length_is_none(value: str) -> None:
    assert hexadecimal(Algorithm.ADLER32, value) is None


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("/local", "davs://host/path"),
        ("ftp://host/x", "davs://host/path"),
        ("davs:///x", "davs://host/path"),
        ("davs://user:secret@host/x", "no user"),
        ("davs://host/x?y", "question mark"),
    ],
)
def test_address_that_is_none_is_refused_with_what_it_is(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plugin.open(Access(address))


def test_option_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="option connections"):
        plugin.open(Access("davs://host/x", options={"connections": "many"}))
