"""One installation for tests that only use it, and one each for those that kill it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.installation import Installation
from tests.testbeds import systems as beds


@pytest.fixture(scope="session")
def khomas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Give one installation to all tests that only use it."""
    installation = Installation(tmp_path_factory.mktemp("khomas"))
    installation.start()
    yield installation
    installation.stop()


@pytest.fixture
def own_khomas(tmp_path: Path) -> Iterator[Installation]:
    """Give an installation that the test may kill."""
    installation = Installation(tmp_path)
    installation.start()
    yield installation
    installation.stop()


# Not for the session: the information systems of ARC take a core between them as long as they run.
@pytest.fixture(scope="module")
def systems() -> Iterator[beds.Systems]:
    """Batch and grid systems; whoever stops one starts it again."""
    with beds.running() as running:
        yield running
