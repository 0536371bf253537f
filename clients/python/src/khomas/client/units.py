"""Sizes, times and counts as people write them. A bare number is refused where a unit is needed."""

import math
import re
from datetime import timedelta

from khomas.client.errors import UsageError

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKMGTP]?)(i?)[bB]\s*")
_TIME_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|min|sec|s|m|h|d|w)")
# Of a whole number in the contract.
_MOST = 2**63 - 1
MOST_INT32 = 2**31 - 1
_LONGEST_SECONDS = 100 * 366 * 86400
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_SECONDS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}


def size(text: object, what: str = "size") -> int:
    """Read "2400MB" (decimal) or "2.3GiB" (binary) as bytes."""
    found = _SIZE.fullmatch(str(text))
    if found is None:
        raise UsageError(f"{what}: {text} needs a unit, such as {_bare(text)}MB or {_bare(text)}GiB")
    base = 1024 if found[3] else 1000
    amount = round(float(found[1]) * float(base ** _POWERS[found[2]]))
    if amount > _MOST:
        raise UsageError(f"{what}: {text} is more than can be written down")
    return amount


def duration(text: object, what: str = "time") -> timedelta:
    """Read "24h", "1h30min", "86400s"."""
    written = str(text).replace(" ", "")
    parts = _TIME_PART.findall(written)
    if not parts or "".join(number + unit for number, unit in parts) != written:
        raise UsageError(f"{what}: {text} needs a unit, such as {_bare(text)}s, {_bare(text)}min or {_bare(text)}h")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds > _LONGEST_SECONDS:
        raise UsageError(f"{what}: {text} is longer than a hundred years")
    return timedelta(seconds=seconds)


def count(text: object, what: str = "number", most: int = _MOST) -> int:
    """Read "2e8", "200_000_000" or 100 as a whole number."""
    found = number(text, what)
    if found != int(found):
        raise UsageError(f"{what}: {text} is no whole number")
    if abs(found) > most:
        raise UsageError(f"{what}: {text} is more than {most}, the most that is possible")
    return int(found)


def number(text: object, what: str = "number") -> float:
    """Read a number that is finite."""
    try:
        found = float(str(text))
    except ValueError:
        raise UsageError(f"{what}: {text} is no number") from None
    if not math.isfinite(found):
        raise UsageError(f"{what}: {text} is no number to compute with")
    return found


def quoted(text: object) -> str:
    """Write a text as it stands in a filter."""
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def show_size(number: int) -> str:
    """Write bytes for people, decimal as disks are sold."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} PB"


def show_duration(seconds: float) -> str:
    """Write seconds for people: "3 s", "12:05", "2 d 03:10:00"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    clock = f"{hours}:{minutes:02}:{secs:02}" if hours or days else f"{minutes}:{secs:02}"
    return f"{days} d {clock}" if days else clock


def _bare(text: object) -> str:
    return re.sub(r"[^\d.]", "", str(text)) or "10"
