"""An ARC CE 6 (REST 1.0) that knows people by their certificates."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from khomas.scheduler.backends.interface import Backend
from tests.backends.arc_suite import ArcSuite, computing_element, settings
from tests.testbeds.arc import Arc


@pytest.fixture(scope="module")
def ce() -> Iterator[Arc]:
    """The CE."""
    with computing_element(6) as running:
        yield running


class TestArc6(ArcSuite):
    """The suite with a certificate."""

    async def test_certificate_that_nobody_knows_is_an_error(self, ce: Arc, backend: Backend) -> None:
        await self.refused(ce, backend, settings(ce, certificate=ce.stranger))

    async def test_missing_certificate_is_an_error(self, ce: Arc, backend: Backend, tmp_path: Path) -> None:
        await self.refused(ce, backend, settings(ce, certificate=tmp_path / "none.pem"))
