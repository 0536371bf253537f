"""What every storage protocol must do, as test classes: subclass those that apply and give them their fixtures.

    class TestMine(ProtocolConformance, ServerConformance, CredentialConformance):
        @pytest.fixture
        def protocol(self): ...    # an open one, on an empty storage

What a class needs is in the fixtures that it does not define: `protocol`, `full`, `forbidden`; `server`; `expired`.
Protocols that only read have `ReadingConformance` with `protocol` and `disk`.
"""

import pytest

# Failures tell the values that they compare, as in a test file.
for _module in ("suite", "listing", "reading", "reading_only", "servers", "third_party"):
    pytest.register_assert_rewrite(f"khomas.storage.conformance.{_module}")

from khomas.storage.conformance.content import GIB, MIB, read, write  # noqa: E402
from khomas.storage.conformance.reading_only import ReadingConformance  # noqa: E402
from khomas.storage.conformance.servers import CredentialConformance, Server, ServerConformance  # noqa: E402
from khomas.storage.conformance.suite import ProtocolConformance  # noqa: E402
from khomas.storage.conformance.third_party import ThirdPartyConformance  # noqa: E402

__all__ = [
    "GIB",
    "MIB",
    "CredentialConformance",
    "ProtocolConformance",
    "ReadingConformance",
    "Server",
    "ServerConformance",
    "ThirdPartyConformance",
    "read",
    "write",
]
