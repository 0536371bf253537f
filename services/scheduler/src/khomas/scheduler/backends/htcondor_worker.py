"""Does one thing with an HTCondor pool: the words of it as arguments, the answer as JSON on standard output.

A process of its own: the bindings read their configuration when they are imported, so one process knows one pool, and
a call to a schedd that does not answer is ended with its process. Needs the standard library and the bindings alone.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# What the schedd was certainly not asked for.
UNREACHED = "unreached: "
# What it said no to, or what the bindings found wrong before they asked.
REFUSED = "refused: "
_NAMES = ("Failed to connect", "no schedd", "Can't connect", "Failed communication with collector")
_DOUBT = ("commit", "timed out", "timeout", "connection closed")


class NoScheddError(Exception):
    """The collector does not answer, or does not know the schedd."""


def main(words: Sequence[str]) -> int:
    """Do it; 1 = it failed, and standard error says why."""
    name, order, *rest = words
    try:
        answer = _ORDERS[order](name, *rest)
    except Exception as error:  # noqa: BLE001  the bindings raise whatever they like; who asked judges the words
        sys.stderr.write(_complaint(order, error) + "\n")
        return 1
    json.dump(answer, sys.stdout)
    return 0


def _complaint(order: str, error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, NoScheddError) or any(name in said for name in _NAMES):
        return UNREACHED + said
    doubtful = any(word in said.lower() for word in _DOUBT)
    return REFUSED + said if order == "submit" and not doubtful else said


def _schedd(name: str) -> Any:
    """The one of this name; without a name the only one of the pool."""
    import htcondor2

    try:
        found = htcondor2.Collector().query(
            htcondor2.AdType.Schedd,
            constraint=f"Name == {json.dumps(name)}" if name else "true",
            projection=["Name", "MyAddress", "CondorVersion", "ScheddIpAddr"],
        )
    except Exception as error:
        raise NoScheddError(f"the collector does not answer: {error}") from error
    if len(found) != 1:
        names = ", ".join(sorted(str(ad["Name"]) for ad in found)) or "none"
        raise NoScheddError(f"no schedd can be chosen by the name {name!r}; there are: {names}")
    return htcondor2.Schedd(found[0])


def _submit(name: str, folder: str, script: str, description: str) -> dict[str, Any]:
    """One cluster; each of its jobs carries its token."""
    import htcondor2

    tokens = (Path(folder) / "tokens").read_text().split()
    submit = htcondor2.Submit({"executable": script, **json.loads(description)})
    submit["My.KhomasToken"] = '"$(token)"'
    result = _schedd(name).submit(submit, itemdata=iter([{"token": token} for token in tokens]))
    return {"cluster": result.cluster()}


def _query(name: str, constraint: str, attributes: str) -> list[dict[str, Any]]:
    """Jobs in the queue."""
    return [_plain(ad) for ad in _schedd(name).query(constraint, attributes.split(","))]


def _history(name: str, constraint: str, attributes: str, match: str, since: str) -> list[dict[str, Any]]:
    """Jobs that have left the queue, the last one first."""
    ads = _schedd(name).history(constraint, attributes.split(","), int(match), since)
    return [_plain(ad) for ad in ads]


def _found(name: str, constraint: str, attributes: str, since: str) -> list[dict[str, Any]]:
    """Jobs wherever they are."""
    return [*_query(name, constraint, attributes), *_history(name, constraint, attributes, "-1", since)]


def _act(name: str, action: str, *jobs: str) -> dict[str, int]:
    """Remove, hold or release; those that are not there are no error."""
    import htcondor2

    done = _schedd(name).act(htcondor2.JobAction[action], list(jobs), ("ordered by Khomas", 0))
    answer = {key: int(done[key]) for key in ("TotalSuccess", "TotalNotFound", "TotalError", "TotalPermissionDenied")}
    if answer["TotalError"] or answer["TotalPermissionDenied"]:
        raise PermissionError(f"not all of the jobs could be told: {answer}")
    return answer


def _pool(name: str, attributes: str, schedd_attributes: str) -> dict[str, Any]:
    """Slots of the pool, and what its schedds have."""
    import htcondor2

    collector = htcondor2.Collector()
    slots = collector.query(htcondor2.AdType.Startd, "true", attributes.split(","))
    schedds = collector.query(htcondor2.AdType.Schedd, "true", schedd_attributes.split(","))
    return {"slots": [_plain(ad) for ad in slots], "schedds": [_plain(ad) for ad in schedds]}


def _plain(ad: Any) -> dict[str, Any]:
    """Values that are no expressions."""
    values = {key: ad[key] for key in ad}
    return {key: value for key, value in values.items() if isinstance(value, str | int | float | bool)}


_ORDERS: Mapping[str, Callable[..., Any]] = {
    "submit": _submit,
    "query": _query,
    "history": _history,
    "found": _found,
    "act": _act,
    "pool": _pool,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
