"""An ARC CE 7 (REST 1.1) that knows people by their tokens."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from khomas.scheduler.backends.interface import Backend
from tests.backends.arc_suite import ArcSuite, computing_element, settings
from tests.testbeds.arc import Arc


@pytest.fixture(scope="module")
def ce() -> Iterator[Arc]:
    """The CE."""
    with computing_element(7) as running:
        yield running


class TestArc7(ArcSuite):
    """The suite with a token."""

    async def test_expired_token_is_an_error(self, ce: Arc, backend: Backend, tmp_path: Path) -> None:
        expired = tmp_path / "token"
        expired.write_text(ce.make_token("-v", "-1"))
        await self.refused(ce, backend, settings(ce, token=expired))

    async def test_what_is_no_token_is_an_error(self, ce: Arc, backend: Backend, tmp_path: Path) -> None:
        wrong = tmp_path / "token"
        wrong.write_text("")
        await self.refused(ce, backend, settings(ce, token=wrong))

    async def test_missing_token_is_an_error(self, ce: Arc, backend: Backend, tmp_path: Path) -> None:
        await self.refused(ce, backend, settings(ce, token=tmp_path / "none"))
