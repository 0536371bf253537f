"""What a server of XRootD runs for `prepare`: notes requests, tells what is where. Standard library only."""

import fcntl
import json
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])


def main() -> None:
    """Take `[-p PRIORITY] [-w] -- REQUEST stage|query|cancel|evict PATH...`."""
    words = sys.argv[sys.argv.index("--") + 1 :]
    request, kind = words[0], words[1]
    paths = [path.partition("?")[0].lstrip("/") for path in words[2:]]
    if kind == "query":
        sys.stdout.write(json.dumps(_told(request, paths)))
        return
    if kind == "cancel" and not paths:
        paths = [path for path, ours in _queue().items() if ours == request]
    with (FOLDER / "requests").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.write(json.dumps({"kind": kind, "request": request, "paths": paths}) + "\n")
    if kind == "evict":
        for path in paths:
            if (FOLDER / "tape" / path).exists():
                (FOLDER / "disk" / path).unlink(missing_ok=True)


def _told(request: str, paths: "list[str]") -> "dict[str, object]":
    queue = _queue()
    waiting = [path for path in queue if not (FOLDER / "disk" / path).exists()]
    places = {path: number for number, path in enumerate(waiting, 1)}
    return {
        "request_id": request,
        "responses": [_of(path, request, queue, places) for path in paths],
    }


def _of(path: str, request: str, queue: "dict[str, str]", places: "dict[str, int]") -> "dict[str, object]":
    online, on_tape = ((FOLDER / where / path).exists() for where in ("disk", "tape"))
    told = {
        "path": f"/{path}",
        "path_exists": online or on_tape,
        "on_tape": on_tape,
        "online": online,
        "requested": path in queue,
        "has_reqid": queue.get(path) == request,
        "error_text": _damage(path) if path in queue else "",
    }
    return told | ({"queue_position": places[path]} if path in places else {})


def _damage(path: str) -> str:
    try:
        return (FOLDER / "damaged" / path.replace("/", "\\")).read_text()
    except FileNotFoundError:
        return ""


def _queue() -> "dict[str, str]":
    """Return the request of each file that was asked for and not taken back, in their order."""
    queue: dict[str, str] = {}
    with (FOLDER / "requests").open() as log:
        for line in log:
            one = json.loads(line)
            for path in one["paths"]:
                if one["kind"] == "stage":
                    queue[path] = one["request"]
                else:
                    queue.pop(path, None)
    return queue


main()
