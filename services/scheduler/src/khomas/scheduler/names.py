"""Names of jobs: "jobs/{uid}" and "jobs/{uid}/{index}"."""

import re
from collections.abc import Iterable

from khomas.scheduler.errors import JobNotFound

_NAME = re.compile(r"jobs/([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(?:/(?:0|[1-9][0-9]{0,8}))?)")


def uid_of(name: str) -> str:
    """Uid of a job or child. Raises `JobNotFound`."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise JobNotFound(name=name)
    return found[1]


def uids_of(names: Iterable[str]) -> list[str]:
    """Uids without repetitions, in order."""
    return list(dict.fromkeys(map(uid_of, names)))


def split(uid: str) -> tuple[str, int]:
    """Array and index of the uid of a child; the index is -1 for what is no child."""
    array, slash, index = uid.partition("/")
    return array, int(index) if slash else -1
