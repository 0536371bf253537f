"""`davs` against XrdHttp."""

import pytest

from khomas.storage.protocols.interface import Problem
from tests.storage.dav import DavSuite
from tests.testbeds.web import WebServer
from tests.testbeds.xrootd import Xrootd


class TestXrdHttp(DavSuite):
    """XrdHttp keeps the contract, as far as it can tell."""

    # It breaks the connection when the disk is full.
    full_problem = Problem.PASSING
    # It would make a file "q".
    refused = frozenset({"q?a=1&b#c"})

    @pytest.fixture
    def server(self, xrootd: Xrootd) -> WebServer:
        return xrootd.servers[0]
