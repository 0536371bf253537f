"""What every backend must do, as a test class: subclass it, give it the fixture `open_backend`.

    class TestMyBackend(BackendConformance):
        @pytest.fixture
        def open_backend(self, tmp_path): return lambda: open_mine(MySettings(...))

`open_backend` may be called again within a test: every backend that it gives speaks to the same system.
"""

import pytest

# Failures tell the values that they compare, as in a test file.
pytest.register_assert_rewrite("khomas.scheduler.conformance.suite", "khomas.scheduler.conformance.steps")

from khomas.scheduler.conformance.jobs import GRACE, MIB, OpenBackend, job, shell, token  # noqa: E402
from khomas.scheduler.conformance.suite import BackendConformance  # noqa: E402

__all__ = ["GRACE", "MIB", "BackendConformance", "OpenBackend", "job", "shell", "token"]
