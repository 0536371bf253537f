"""The worked example on every system that a test bed can start: `python -m tests.testbeds.demo slurm at`.

Nothing differs between them but the word behind `--on`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.testbeds import doorway, systems
from tests.testbeds.namespace import Namespace

_DEMO = Path(__file__).parents[2] / "examples/hess/demo.py"
_MINUTES = 60


def run(name: str, data: Path | None, state: Path) -> dict[str, Any]:
    """Run the example on one system; return its report."""
    folder = state / name
    folder.mkdir(parents=True)
    command = [sys.executable, str(_DEMO), "--state", str(folder / "demo"), "--on", name]
    with systems.running() as running:
        system = running[name]
        with (
            subprocess.Popen(
                [*command, *(["--data", str(data)] if data else [])],
                env={**os.environ, "KHOMAS_SCHEDULER_BACKENDS": json.dumps({name: system.settings})},
            ) as demo,
            _way_out(system.network, folder / "demo/services/ports.json", demo),
        ):
            if demo.wait(20 * _MINUTES):
                sys.exit(f"the example did not come to its end on {name}")
    report: dict[str, Any] = json.loads((folder / "demo/demo-report.json").read_text())
    return report


@contextmanager
def _way_out(network: Namespace | None, ports: Path, demo: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Let jobs in another network reach the storage."""
    while network is not None and demo.poll() is None and not ports.exists():
        time.sleep(0.05)
    if network is None or not ports.exists():
        yield
        return
    port = json.loads(ports.read_text())["storage"]
    door = subprocess.Popen([sys.executable, doorway.__file__, str(network.path), str(port), "out"])
    try:
        yield
    finally:
        door.terminate()
        door.wait(_MINUTES)


def main() -> None:
    """Run it on those that were named, or on all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*systems.NAMES, []], help="all")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--state", type=Path, required=True)
    arguments = parser.parse_args()
    state = arguments.state.resolve()
    reports = {name: run(name, arguments.data, state) for name in arguments.names or systems.NAMES}
    for name, report in reports.items():
        sys.stdout.write(f"{name:16} index {report['index']:.3f}  ON {report['on_counts']}  {report['seconds']} s\n")


if __name__ == "__main__":
    main()
