"""Keeps one test bed running for use by hand: `python -m tests.testbeds slurm`.

`python -m tests.testbeds install` brings the programs of all of them.
"""

import importlib
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.testbeds import install

_HERE = Path(__file__).parent
_SHARED = {
    "__main__",
    "background",
    "demo",
    "door_server",
    "doorway",
    "install",
    "kubernetes_build",
    "kubernetes_node",
    "kubernetes_rules",
    "namespace",
    "packages",
    "processes",
    "users",
}


def main(arguments: list[str]) -> int:
    """Start a bed, say how to use it, stop it at Ctrl-C."""
    if arguments == ["install"]:
        return bring()
    names = sorted(path.stem for path in _HERE.glob("*.py") if path.stem not in _SHARED)
    if len(arguments) != 1 or arguments[0] not in names:
        sys.stderr.write(f"usage: python -m tests.testbeds {{{' | '.join(names)}}}\n")
        return 2
    module = importlib.import_module(f"tests.testbeds.{arguments[0]}")
    with tempfile.TemporaryDirectory(prefix="khomas-bed-") as folder:
        Path(folder).chmod(0o755)
        with module.running(Path(folder)) as bed:
            sys.stdout.write(f"{shown(bed)}\nrunning; Ctrl-C stops it\n")
            sys.stdout.flush()
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0


def bring() -> int:
    """Install; what cannot be installed is said again by the tests that need it."""
    try:
        install.everything()
    except (install.NotInstallableError, OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"Not all programs of the test beds could be installed: {error}\n")
    return 0


def shown(bed: object) -> str:
    """How to reach it: variables to export, words that go before commands, addresses."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in getattr(bed, "environment", {}).items()]
    if getattr(bed, "prefix", ()):
        lines.append(f"put before commands: {shlex.join(bed.prefix)}")  # type: ignore[attr-defined]
    names = ("tools", "rest_url", "address", "key", "known_hosts")
    lines += [f"{name}: {getattr(bed, name)}" for name in names if hasattr(bed, name)]
    return "\n".join(lines) or str(bed)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    sys.exit(main(sys.argv[1:]))
