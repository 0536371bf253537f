"""A process that serves keeps memory that is free again, and looks for cycles rarely."""

import platform
import subprocess
import sys

import pytest

# Pages that are mapped anew while blocks of files come and go.
_COUNTED = """
import gc, resource
from khomas.kit.memory import settle
{first}
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def come_and_go():
    blocks = [bytes(256 << 10) for _ in range(32)]
come_and_go()
before = pages()
for _ in range(20):
    come_and_go()
print(pages() - before, gc.get_threshold()[0], gc.get_freeze_count())
"""


def counted(first: str) -> list[int]:
    answer = subprocess.run([sys.executable, "-c", _COUNTED.format(first=first)], check=True, capture_output=True)
    return list(map(int, answer.stdout.split()))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have no such settings")
def test_pages_of_blocks_are_mapped_once() -> None:
    as_usual, _, _ = counted("")
    kept, _, _ = counted("settle()")

    assert as_usual > 20_000
    assert kept < as_usual / 20


def test_what_the_start_has_made_is_not_looked_at_again() -> None:
    _, young, frozen = counted("settle()")

    assert young == 50_000
    assert frozen > 1_000
