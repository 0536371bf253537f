"""The collector of cyclic garbage in a process that serves."""

import gc

# Objects that are new between two looks. Python's 700 means a hundred looks in a call for 1000 items, which make
# no cycles: a third of such a call's time.
_YOUNG, _MIDDLE, _OLD = 50_000, 20, 50


def collect_rarely() -> None:
    """Leave what the start has made out of all later collections, and collect less often than usual."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
