"""Submits by DRMAA 1.0: the words of a command a line on standard input, its answer a line on standard output.

A process of its own: the library is pinned by the environment, a session belongs to its process, and a call to a
master that does not answer never returns. The command is `drmaa NAME COUNT SCRIPT OPTIONS`; it answers as
`qsub -terse` would.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any


def main() -> int:
    """Answer until the input ends."""
    session, trouble = _session()
    try:
        for line in sys.stdin:
            answer = _answer(session, json.loads(line)) if session else {"exit_code": 1, "stderr": trouble}
            sys.stdout.write(json.dumps({"stdout": "", "stderr": "", **answer}) + "\n")
            sys.stdout.flush()
    finally:
        if session:
            session.exit()
    return 0


def _session() -> tuple[Any, str]:
    """Begin a session; say why there is none."""
    try:
        import drmaa

        session = drmaa.Session()
        session.initialize()
    except Exception as error:  # noqa: BLE001  whatever it is, nothing was submitted
        return None, f"no DRMAA session: {error}"
    return session, ""


def _answer(session: Any, words: Sequence[str]) -> dict[str, Any]:
    from drmaa.errors import DrmaaException

    try:
        return {"exit_code": 0, "stdout": _submit(session, *words[1:]) + "\n"}
    except DrmaaException as error:
        return {"exit_code": 1, "stderr": f"{type(error).__name__}: {error}".strip()}


def _submit(session: Any, name: str, count: str, script: str, options: str) -> str:
    template = session.createJobTemplate()
    try:
        template.remoteCommand = script
        template.jobName = name
        template.workingDirectory = "/"
        template.outputPath = ":/dev/null"
        template.joinFiles = True
        template.nativeSpecification = options
        if int(count) == 1:
            return str(session.runJob(template))
        first: str = session.runBulkJobs(template, 1, int(count), 1)[0]
        return f"{first}-{count}:1"
    finally:
        session.deleteJobTemplate(template)


if __name__ == "__main__":
    sys.exit(main())
