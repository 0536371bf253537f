"""`khomas-scheduler`: the service on its own."""

import sys

from khomas.kit.run import run
from khomas.scheduler.app import service


def main() -> None:
    """Run the command line."""
    sys.exit(run(service))


if __name__ == "__main__":
    main()
