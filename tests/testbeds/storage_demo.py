"""The worked example with its files elsewhere: runs on XRootD, products on S3, a second copy on tape.

Nothing differs from the plain one but the names of the StorageElements.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.testbeds import storages, tape

_DEMO = Path(__file__).parents[2] / "examples/hess/demo.py"
_MINUTES = 60
_RUNS, _PRODUCTS, _TAPE = "root-first", "s3-rclone", "tape"


def main() -> None:
    """Run it with data of its own, or with those that were named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    arguments = parser.parse_args()
    state = arguments.state.resolve()
    with (
        storages.running(_RUNS, _PRODUCTS) as stores,
        tempfile.TemporaryDirectory(prefix="khomas-tape-") as folder,
        tape.running(Path(folder)) as archive,
    ):
        runs = stores[_RUNS].folder
        assert runs is not None
        shutil.copytree(arguments.data, runs, dirs_exist_ok=True)
        elements = [[name, store.address, *_words(name, store)] for name, store in stores.items()]
        elements[0].append("--read-only")
        elements.append([_TAPE, archive.address, "--protocol", "root", "--option", "tape=true", "--media", "tape"])
        command = [
            *(sys.executable, str(_DEMO), "--state", str(state), "--data", str(arguments.data)),
            *(word for element in elements for word in ("--element", shlex.join(element))),
            *("--inputs", _RUNS, "--outputs", _PRODUCTS, "--copies", _TAPE),
        ]
        credentials = {name: dict(store.credential) for name, store in stores.items()}
        environment = {**os.environ, "KHOMAS_STORAGE_CREDENTIALS": json.dumps(credentials)}
        if subprocess.run(command, env=environment, check=False, timeout=20 * _MINUTES).returncode:
            sys.exit("the example did not come to its end")
        copies = [path for path in archive.disk.rglob("*.fits*") if path.is_file()]
        sys.stdout.write(f"{len(copies)} FITS files came to the tape system\n")


def _words(name: str, store: storages.Store) -> list[str]:
    options = (word for key, value in store.options.items() for word in ("--option", f"{key}={value}"))
    return ["--protocol", store.protocol, "--credential", name, *options]


if __name__ == "__main__":
    main()
