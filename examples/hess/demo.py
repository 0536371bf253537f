#!/usr/bin/env python3
"""An observatory at work, from runs on a disk to a release: what `make demo` runs.

    demo.py --state FOLDER [--data FOLDER] [--on BACKEND] [--inputs SE] [--outputs SE] [--copies SE]

Everything is done by the `khomas` command; each command is printed before it runs. Without --data the runs are
simulated. At the end FOLDER has `demo-report.json`, `products/` and `release/`.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
PATIENCE = 300
CARDS = ["OBJECT", "OBS_ID", "TELESCOP", "RA_PNT=ra_pnt:deg", "DEC_PNT=dec_pnt:deg", "LIVETIME=livetime:s"]


class Khomas:
    """A running `khomas up` and the commands that are given to it."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "services"
        self.environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
        self.server: subprocess.Popen[bytes] | None = None
        self.log = state / "services.log"

    def start(self) -> None:
        """Start every service and wait until they answer."""
        ready = self.folder.parent / "ready"
        command = [
            "khomas",
            "up",
            "--state",
            str(self.folder),
            "--port",
            "0",
            "--vo",
            "hess",
            "--ready-file",
            str(ready),
        ]
        say(command)
        with self.log.open("wb") as log:
            self.server = subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        end = time.monotonic() + 60
        while not ready.exists():
            if self.server.poll() is not None or time.monotonic() > end:
                sys.exit(f"khomas up did not start; {self.log} says:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)
        endpoint = json.loads((self.folder / "endpoint.json").read_text())
        self.environment |= {"KHOMAS_ENDPOINT": endpoint["endpoint"], "BEARER_TOKEN_FILE": endpoint["token_file"]}

    def stop(self) -> None:
        """End the services gracefully."""
        if self.server is not None and self.server.poll() is None:
            self.server.send_signal(signal.SIGTERM)
            self.server.wait(timeout=60)

    def __call__(self, *arguments: object) -> None:
        """Run a command and let it print."""
        command = ["khomas", *map(str, arguments)]
        say(command)
        code = subprocess.run(command, env=self.environment, check=False, timeout=PATIENCE).returncode
        if code:
            sys.exit(f"`{' '.join(command)}` ended with {code}; {self.log} may say more")

    def ask(self, *arguments: object) -> list[dict[str, Any]]:
        """Run a command with --json and return what it printed, without showing it."""
        command = ["khomas", *map(str, arguments), "--json"]
        answer = subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=PATIENCE)
        return [json.loads(line) for line in answer.stdout.splitlines()]


def with_value(option: str, value: str) -> list[str]:
    """An option, if it has a value."""
    return [option, value] if value else []


def say(command: list[str]) -> None:
    """Print a command as a person would type it."""
    words = (f"'{word}'" if set(word) & set(" *?()<>") else word for word in command)
    print(f"\n$ {' '.join(words)}", flush=True)


def simulated(state: Path) -> Path:
    """Simulate four runs."""
    folder = state / "simulated"
    command = [sys.executable, str(HERE / "programs/simulate.py"), str(folder)]
    say(command)
    subprocess.run(command, check=True, timeout=PATIENCE)
    return folder


def publish(khomas: Khomas, data: Path, folder: Path) -> None:
    """Release runs and products together, and fetch what the exporters made."""
    khomas("dataset", "add", "hess/crab/products", "--from", "hess/dl3", "--where", 'metadata.object = "Crab*"')
    terms = data / "TERMS-OF-USE.txt"
    khomas(
        *("release", "create", "crab/1", "hess/crab/products", "--mapping", HERE / "mapping.yaml"),
        *("--authority", "khomas.example", "--title", "The Crab Nebula"),
        *(["--terms", terms] if terms.exists() else []),
    )
    khomas("release", "publish", "crab/1")
    khomas("release", "export", "crab/1", "obscore")
    khomas("release", "export", "crab/1", "gadf-index")
    khomas("get", "--dataset", "releases/crab/1", "--to", folder)
    exports = (f"/hess/releases/crab/1/{name}" for name in ("obscore.vot", "obs-index.fits.gz", "hdu-index.fits.gz"))
    khomas("get", *exports, "--to", folder)


def report(khomas: Khomas, started: float, products: Path) -> dict[str, Any]:
    """Collect the facts of this demonstration."""
    spectrum = json.loads((products / "spectrum.json").read_text())
    return {
        "on_counts": {run: counts["on"] for run, counts in spectrum["runs"].items()},
        "index": spectrum["index"]["value"],
        "index_error": spectrum["index"]["error"],
        "amplitude": spectrum["amplitude"]["value"],
        "products": [
            {
                "name": one["name"],
                "size": one["size"],
                "checksums": {key: one[key] for key in ("adler32", "sha256", "content_digest") if one[key]},
                "path": one["paths"],
                "replicas": one["replicas"],
            }
            for one in khomas.ask("find", "/hess/crab") + khomas.ask("find", "/hess/releases/crab/1")
        ],
        "jobs": [
            {key: one[key] for key in ("id", "name", "state", "attempt")} for one in khomas.ask("ls", "--limit", 0)
        ],
        "seconds": round(time.monotonic() - started, 1),
    }


@dataclass(frozen=True)
class Places:
    """Where jobs run and files lie, if not on this machine."""

    on: list[str]
    # What `khomas se create` is told of StorageElements elsewhere.
    elements: list[str]
    # Of them: with the runs, for the products, for a second copy of the products.
    inputs: str
    outputs: str
    copies: str


def run(khomas: Khomas, data: Path, state: Path, places: Places, started: float) -> None:
    """Adopt, produce, publish, look."""
    products = state / "products"
    for element in places.elements:
        khomas("se", "create", *shlex.split(element))
    if places.inputs == "runs":
        khomas("se", "create", "runs", data, "--read-only")
    headers = [word for card in CARDS for word in ("--header", card)]
    khomas(
        *("adopt", "start", places.inputs, "/hess/dl3"),
        *("--include", "data/*.fits.gz", "--pattern", r"obs_id_(?P<run>\d+)"),
        *(*headers, "--dataset", "hess/dl3", "--declare"),
    )
    khomas("dataset", "close", "hess/dl3")
    where = [*(word for backend in places.on for word in ("--on", backend)), *with_value("--se", places.outputs)]
    khomas("prod", "create", HERE / "crab.yaml", *where)
    khomas("prod", "wait", "crab", "--timeout", f"{PATIENCE}s")
    if places.copies:
        khomas("rule", "create", places.copies, "--dataset", "hess/crab/products", "--wait")
    publish(khomas, data, state / "release")
    khomas("prod", "show", "crab")
    khomas("find", "/hess/crab", "-o", "name,size,adler32,paths")
    khomas("trace", "/hess/crab/significance.fits")
    khomas("get", "/hess/crab", "--to", products)
    facts = report(khomas, started, products)
    (state / "demo-report.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"\nON counts {facts['on_counts']}")
    print(f"spectral index {facts['index']:.3f} +- {facts['index_error']:.3f}")
    print(f"products in {products}, the release in {state / 'release'}, facts in {state / 'demo-report.json'}")
    print(f"{facts['seconds']} s")


def main() -> None:
    """Run the demonstration in a fresh state folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with data/*.fits.gz; without it runs are simulated")
    parser.add_argument("--state", type=Path, default=Path("demo-state"), help="folder for everything (demo-state)")
    parser.add_argument("--on", action="append", default=[], metavar="BACKEND", help="where jobs run (anywhere)")
    parser.add_argument(
        "--element",
        action="append",
        default=[],
        metavar="WORDS",
        help="make a StorageElement known: what khomas se create takes, in one word",
    )
    parser.add_argument(
        "--inputs", default="runs", metavar="SE", help="the element that has the runs, if not DATA itself"
    )
    parser.add_argument("--outputs", default="", metavar="SE", help="where products go (this machine)")
    parser.add_argument("--copies", default="", metavar="SE", help="where a second copy of the products goes (nowhere)")
    arguments = parser.parse_args()
    started = time.monotonic()
    state: Path = arguments.state.resolve()
    if (state / "services").exists():
        # An earlier demonstration: nothing else makes a folder of this name.
        shutil.rmtree(state)
    state.mkdir(parents=True, exist_ok=True)
    if arguments.data and not (arguments.data / "data").is_dir():
        sys.exit(f"{arguments.data} has no folder data/ with run files; leave DATA out to simulate runs")
    data = arguments.data.resolve() if arguments.data else simulated(state)
    khomas = Khomas(state)
    try:
        khomas.start()
        places = Places(arguments.on, arguments.element, arguments.inputs, arguments.outputs, arguments.copies)
        run(khomas, data, state, places, started)
    finally:
        khomas.stop()


if __name__ == "__main__":
    main()
