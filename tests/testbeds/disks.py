"""Disks that are small, or may only be read: mounted for a test, gone after it. Needs root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a disk of this size in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=755", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        _unmount(folder)


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """Make what is in a folder readable only."""
    _run("mount", "--bind", str(folder), str(folder))
    try:
        _run("mount", "-o", "remount,bind,ro", str(folder))
        yield folder
    finally:
        _unmount(folder)


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Mount a small one, to look at by hand."""
    with memory(folder / "small", 4 << 20) as small:
        yield f"a disk of 4 MiB: {small}"


def _unmount(folder: Path) -> None:
    # Whoever still has a file open there keeps it, and the name is free.
    _run("umount", "--lazy", str(folder))


def _run(*argv: str) -> None:
    if os.geteuid() != 0:
        raise PermissionError(f"as root: {' '.join(argv)}")
    subprocess.run(argv, check=True, capture_output=True, timeout=30)
