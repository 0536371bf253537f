"""`davs` against XrdHttp."""

import pytest

from tests.storage.dav import DavSuite
from tests.testbeds.web import WebServer
from tests.testbeds.xrootd import Xrootd


class TestXrdHttp(DavSuite):
    """XrdHttp keeps the contract."""

    @pytest.fixture
    def server(self, xrootd: Xrootd) -> WebServer:
        return xrootd.servers[0]
