"""Values that the tables have and the contract has not."""

from enum import IntEnum


class Listing(IntEnum):
    """How far the files that lie there already were looked at."""

    # Not yet.
    NEEDED = 0
    # Once; what comes later is told by events.
    DONE = 1
    # Once more after nothing could come any more.
    FINAL = 2
    # At this moment. After a crash the same as NEEDED.
    RUNNING = 3
