"""Values in filters: numbers, durations and moments."""

import math
import re
from datetime import UTC, datetime, timedelta

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_INT64 = 2**63


def read_integer(text: str) -> int:
    """Read a whole number that a database can hold."""
    number = int(text) if re.fullmatch(r"[+-]?\d{1,19}", text) else None
    if number is None or not -_INT64 <= number < _INT64:
        raise ValueError("a whole number is expected, such as 42")
    return number


def read_number(text: str) -> float:
    """Read a finite number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("a number is expected, such as 40.5")
    return number


def read_boolean(text: str) -> bool:
    """Read true or false."""
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false is expected")
    return text.lower() == "true"


def read_duration(text: str) -> timedelta:
    """Read a time span with units: `1d`, `30m`, `1h30m`, `0.5s`."""
    found = _DURATION.fullmatch(text.removeprefix("-"))
    if not found or not any(found.groups()):
        raise ValueError("a duration with a unit is expected, such as 30m, 1h30m or 2d")
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    try:
        span = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    except OverflowError:
        raise ValueError("this duration is too long") from None
    return -span if text.startswith("-") else span


def read_time(text: str) -> datetime:
    """Read a moment of RFC 3339, or a day, which means its start in UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError('a moment is expected, such as "2024-05-01T12:00:00Z" or 2024-05-01') from None
    if _DAY.fullmatch(text):
        return moment.replace(tzinfo=UTC)
    if moment.tzinfo is None:
        raise ValueError(f"the moment needs a time zone, such as {text}Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("this moment is out of range") from None
