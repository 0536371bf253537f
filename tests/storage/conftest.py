"""Servers that several test files speak to, started once a session."""

from collections.abc import Iterator

import pytest

from tests.backends.conftest import shared_folder
from tests.testbeds import apache as apache_bed
from tests.testbeds import doors as doors_bed
from tests.testbeds import nginx as nginx_bed
from tests.testbeds import tape as tape_bed
from tests.testbeds import xrootd as xrootd_bed
from tests.testbeds.doors import Doors
from tests.testbeds.tape import Tape
from tests.testbeds.web import WebServer
from tests.testbeds.xrootd import Xrootd


@pytest.fixture(scope="session")
def xrootd() -> Iterator[Xrootd]:
    """Two XRootD servers; whoever stops one starts it again."""
    with xrootd_bed.running(shared_folder("xrootd")) as running:
        yield running


@pytest.fixture(scope="session")
def apache() -> Iterator[WebServer]:
    """Apache with mod_dav; whoever stops it starts it again."""
    with apache_bed.running(shared_folder("apache")) as running:
        yield running


@pytest.fixture(scope="session")
def nginx() -> Iterator[WebServer]:
    """An nginx with WebDAV; whoever stops it starts it again."""
    with nginx_bed.running(shared_folder("nginx")) as running:
        yield running


@pytest.fixture(scope="session")
def doors() -> Iterator[Doors]:
    """Two doors of ours; whoever stops one starts it again."""
    with doors_bed.running(shared_folder("doors")) as running:
        yield running


@pytest.fixture(scope="session")
def tape() -> Iterator[Tape]:
    """An XRootD server in front of an emulated tape; whoever stops it starts it again."""
    with tape_bed.running(shared_folder("tape")) as running:
        yield running
