"""`khomas.bookkeeping`: the service on its own."""

import sys

from khomas.bookkeeping.app import service
from khomas.kit.run import run


def main() -> None:
    """Run the command line."""
    sys.exit(run(service))


if __name__ == "__main__":
    main()
