"""For all tests."""

import os
from pathlib import Path

# Test beds start programs as other users, for which Python forks; gRPC's handlers of a fork sometimes abort the child
# when threads of this process are in gRPC at that moment.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

# Jobs start thousands of interpreters: the system's, as on nodes. That of a version manager may take ten times as long.
if Path("/usr/bin/python3").exists():
    os.environ["PATH"] = f"/usr/bin{os.pathsep}{os.environ['PATH']}"
