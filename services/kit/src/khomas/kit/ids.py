"""Uids: UUIDv7 in canonical text, ascending inside one process."""

import os
import re
import threading
import time
from datetime import UTC, datetime

_UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_COUNTER_BITS = 42
_COUNTER_END = 1 << _COUNTER_BITS

_lock = threading.Lock()
_last_ms = 0
_counter = 0


def new_uid() -> str:
    """Make a uid greater than every one made before by this process."""
    return new_uids(1)[0]


def new_uids(count: int) -> list[str]:
    """Make many ascending uids at once."""
    noise = os.urandom(4 * count)
    first = _reserve(count)
    return [_text(*divmod(first + n, _COUNTER_END), noise[4 * n : 4 * n + 4]) for n in range(count)]


def is_uid(text: str) -> bool:
    """Tell whether the text is a uid as this module makes them."""
    return _UID.fullmatch(text) is not None


def uid_time(uid: str) -> datetime:
    """Return when the uid was made, to the millisecond."""
    if not is_uid(uid):
        raise ValueError(f"not a UUIDv7: {uid!r}")
    return datetime.fromtimestamp(int(uid[:8] + uid[9:13], 16) / 1000, UTC)


def _reserve(count: int) -> int:
    """Take `count` positions; a position is milliseconds and counter as one number (RFC 9562, method 1)."""
    global _last_ms, _counter  # noqa: PLW0603  the counter is what makes the uids ascend
    with _lock:
        now_ms = time.time_ns() // 1_000_000
        if now_ms > _last_ms:
            _last_ms = now_ms
            # Half of the range stays free for counting up inside this millisecond.
            _counter = int.from_bytes(os.urandom(6)) >> (48 - _COUNTER_BITS + 1)
        first = _last_ms * _COUNTER_END + _counter
        _last_ms, _counter = divmod(first + count, _COUNTER_END)
        return first


def _text(milliseconds: int, counter: int, noise: bytes) -> str:
    stamp = f"{milliseconds:012x}"
    high = 0x7000 | counter >> 30
    middle = 0x8000 | (counter >> 16) & 0x3FFF
    return f"{stamp[:8]}-{stamp[8:]}-{high:04x}-{middle:04x}-{counter & 0xFFFF:04x}{noise.hex()}"
