"""`davs` against nginx with dav-ext."""

import pytest

from khomas.storage.protocols.interface import Problem
from tests.storage.dav import DavSuite
from tests.testbeds.web import WebServer


class TestNginx(DavSuite):
    """nginx keeps the contract, as far as it can tell."""

    # A full disk is "500 Internal Server Error", like everything else.
    full_problem = Problem.PASSING
    leaves_parts = True
    # The module leaves out names with a dot in front.
    unlisted = frozenset({".hidden"})

    @pytest.fixture
    def server(self, nginx: WebServer) -> WebServer:
        return nginx
