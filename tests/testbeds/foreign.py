"""Our Python and its libraries in the chroot of another system, which has a Python of another version."""

import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_PYTHON = Path("/usr/bin/python3")


@contextmanager
def python_for(root: Path, folder: Path) -> Iterator[Path]:
    """A folder with `python3`, to be put on a PATH in the chroot; `folder` has the same path there."""
    binary = _PYTHON.resolve()
    library = Path("/usr/lib") / binary.name
    with ExitStack() as stack:
        stack.enter_context(_shown(library, root, folder / "lib" / binary.name))
        stack.enter_context(_shown(Path(sysconfig.get_path("purelib")), root, folder / "site"))
        (folder / "bin").mkdir()
        shutil.copy(binary, folder / binary.name)
        program = folder / "bin/python3"
        program.write_text(
            f'#!/bin/sh\nPYTHONHOME="{folder}" PYTHONPATH="{folder}/site" exec "{folder}/{binary.name}" "$@"\n'
        )
        program.chmod(0o755)
        yield folder / "bin"


@contextmanager
def _shown(source: Path, root: Path, target: Path) -> Iterator[None]:
    """Let the chroot read a folder; whoever deletes all that is below cannot touch it."""
    target.mkdir(parents=True)
    inside = str(root / target.relative_to("/"))
    subprocess.run(["mount", "-o", "bind,ro", str(source), inside], check=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", inside], check=True, timeout=30)
