"""Keeps one test bed running for use by hand: `python -m tests.testbeds slurm`."""

import importlib
import signal
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent
_SHARED = {"__main__", "demo", "doorway", "install", "namespace", "processes", "users"}


def main(arguments: list[str]) -> int:
    """Start a bed, say how to use it, stop it at Ctrl-C."""
    names = sorted(path.stem for path in _HERE.glob("*.py") if path.stem not in _SHARED)
    if len(arguments) != 1 or arguments[0] not in names:
        sys.stderr.write(f"usage: python -m tests.testbeds {{{' | '.join(names)}}}\n")
        return 2
    module = importlib.import_module(f"tests.testbeds.{arguments[0]}")
    with tempfile.TemporaryDirectory(prefix="khomas-bed-") as folder:
        Path(folder).chmod(0o755)
        with module.running(Path(folder)) as bed:
            sys.stdout.write(f"{bed}\n\nrunning; Ctrl-C stops it\n")
            sys.stdout.flush()
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    sys.exit(main(sys.argv[1:]))
