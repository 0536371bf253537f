"""How a process that serves treats its memory: cycles are looked for rarely, what is free again is kept."""

import ctypes
import gc
from typing import Final

# Objects that are new between two looks. Python's 700 means a hundred looks in a call for 1000 items, which make
# no cycles: a third of such a call's time.
_YOUNG, _MIDDLE, _OLD = 50_000, 20, 50

# Of malloc.h. By itself glibc gives large blocks back to the system as soon as they are free. Blocks of files, and
# messages for 1000 items, are such: each page of each is mapped anew, 190 times for 1 MiB that is copied.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_KEPT_BYTES: Final = 32 << 20
_SYSTEM_BYTES: Final = 8 << 20


def settle() -> None:
    """Do this once, when all that stays has been made."""
    gc.collect()
    # Left out of all later looks.
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
    library = ctypes.CDLL(None)
    # Others than glibc do without.
    if hasattr(library, "mallopt"):
        library.malloc_trim(0)
        library.mallopt(_M_MMAP_THRESHOLD, _SYSTEM_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
