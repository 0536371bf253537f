"""`davs` against Apache with mod_dav."""

import pytest

from tests.storage.dav import DavSuite
from tests.testbeds.web import WebServer


class TestApache(DavSuite):
    """Apache keeps the contract."""

    @pytest.fixture
    def server(self, apache: WebServer) -> WebServer:
        return apache
