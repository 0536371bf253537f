"""Submits by DRMAA 1.0: one order a line on standard input, one answer a line on standard output.

A process of its own: the library is pinned by the environment, a session belongs to its process, and a call
to a master that does not answer never returns.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any


def main() -> int:
    """Answer until the input ends."""
    import drmaa

    session = drmaa.Session()
    session.initialize()
    try:
        for line in sys.stdin:
            sys.stdout.write(json.dumps(_answer(session, json.loads(line))) + "\n")
            sys.stdout.flush()
    finally:
        session.exit()
    return 0


def _answer(session: Any, order: Mapping[str, Any]) -> dict[str, Any]:
    from drmaa.errors import DeniedByDrmException, DrmaaException, InvalidArgumentException, TryLaterException

    try:
        return {"ids": _submit(session, order)}
    except TryLaterException as error:
        return {"later": str(error).strip()}
    except (DeniedByDrmException, InvalidArgumentException) as error:
        return {"denied": str(error).strip()}
    except DrmaaException as error:
        return {"failed": str(error).strip()}


def _submit(session: Any, order: Mapping[str, Any]) -> list[str]:
    template = session.createJobTemplate()
    try:
        template.remoteCommand, *template.args = order["command"]
        template.jobName = order["name"]
        template.workingDirectory = order["folder"]
        template.outputPath = f":{order['output']}"
        template.joinFiles = True
        template.nativeSpecification = order["options"]
        if order["count"]:
            return list(session.runBulkJobs(template, 1, order["count"], 1))
        return [session.runJob(template)]
    finally:
        session.deleteJobTemplate(template)


if __name__ == "__main__":
    sys.exit(main())
