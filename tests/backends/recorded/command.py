"""One command of an emulated batch system: it asks the server whose socket lies beside it.

Copied to the folder of the tools under the names of its commands; standard library only, since it starts often.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path


def main() -> int:
    tool = Path(sys.argv[0]).absolute()
    program = tool.name
    request = {"program": program, "arguments": sys.argv[1:], "cwd": str(Path.cwd()), "env": dict(os.environ)}
    request["stdin"] = "" if sys.stdin.isatty() or program[0] == "q" else sys.stdin.read()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(tool.with_name("server")))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                answer = json.loads(stream.readline())
    except (OSError, ValueError):
        return unreachable(program)
    sys.stdout.write(answer["stdout"])
    sys.stderr.write(answer["stderr"])
    return int(answer["code"])


def unreachable(program: str) -> int:
    """Do as the manuals say: PBS gives up, LSF waits for its daemon."""
    if program[0] == "q":
        sys.stderr.write(f"Connection refused\n{program}: cannot connect to server pbs (errno=15010)\n")
        return 255
    sys.stderr.write("LSF is down. Please wait ...\n")
    sys.stderr.flush()
    time.sleep(600)
    return 255


if __name__ == "__main__":
    sys.exit(main())
