"""For all tests."""

import os

# Test beds start programs as other users, for which Python forks; gRPC's handlers of a fork sometimes abort the child
# when threads of this process are in gRPC at that moment.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
