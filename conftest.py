"""For all tests."""

import os
import shutil
from pathlib import Path

# Test beds start programs as other users, for which Python forks; gRPC's handlers of a fork sometimes abort the child
# when threads of this process are in gRPC at that moment.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

# Jobs start thousands of interpreters. A version manager's `python3` is a script that takes ten times as long as the
# system's, and nodes have the latter.
_SYSTEM = Path("/usr/bin")
_found = shutil.which("python3")
if (_SYSTEM / "python3").exists() and _found is not None:
    with Path(_found).open("rb") as _program:
        if _program.read(2) == b"#!":
            os.environ["PATH"] = f"{_SYSTEM}{os.pathsep}{os.environ['PATH']}"
