"""Emulates the commands of LSF 10.1 in the formats of its manual: `python -m … FOLDER SLOTS`."""

import getopt
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from tests.backends.recorded.batch_system import BatchSystem, Task
from tests.backends.recorded.server import Answer, Call, UsageError, serve

PROGRAMS = ("bsub", "bjobs", "bkill", "bstop", "bresume", "bqueues", "bhosts", "bparams")
QUEUES = ("normal", "short")
_NAME = re.compile(r"([^\[\]]*)(?:\[(\d+)-(\d+)\](?:%\d+)?)?$")
_ID = re.compile(r"(\d+)(?:\[(\d+)\])?$")


class Lsf:
    """The daemon's answers."""

    def __init__(self, slots: int) -> None:
        self.system = BatchSystem(slots, kill_seconds=2.0)

    def answer(self, call: Call) -> Answer:
        """Answer one command."""
        handlers = {
            "bsub": self.bsub,
            "bjobs": self.bjobs,
            "bkill": self.bkill,
            "bstop": self.bstop,
            "bresume": self.bstop,
            "bqueues": self.bqueues,
            "bhosts": self.bhosts,
            "bparams": self.bparams,
        }
        return handlers[call.program](call)

    def bsub(self, call: Call) -> Answer:
        options, command = _options(call.arguments, "J:o:e:q:n:R:M:W:P:G:", ["cwd=", "app=", "sp=", "rn"])
        given = dict(options)
        queue = given.get("-q", QUEUES[0])
        if queue not in QUEUES:
            return Answer("", f"{queue}: No such queue. Job not submitted.\n", 255)
        slots = int(given.get("-n", "1"))
        if slots > self.system.slots:
            return Answer("", "Too many processors requested. Job not submitted.\n", 255)
        match = _NAME.match(given.get("-J", ""))
        if match is None:
            return Answer("", "Bad job name. Job not submitted.\n", 255)
        number = self.system.next_number()
        indices = list(range(int(match[2]), int(match[3]) + 1)) if match[2] else [None]
        script = " ".join(command) or call.stdin
        self.system.submit(
            Task(
                number,
                index,
                match[1],
                queue,
                script,
                given.get("-cwd", call.cwd),
                {**call.env, "LSB_JOBID": str(number), "LSB_JOBINDEX": str(index or 0)},
                output=given.get("-o", "/dev/null"),
                slots=slots,
            )
            for index in indices
        )
        default = "" if "-q" in given else "default "
        return Answer(f"Job <{number}> is submitted to {default}queue <{queue}>.\n")

    def bjobs(self, call: Call) -> Answer:
        arguments = [one for one in call.arguments if one != "-json"]
        options, names = _options(arguments, "ao:u:J:")
        given = dict(options)
        fields = given.get("-o", "").split()
        if "-json" not in call.arguments or not fields:
            raise UsageError("this emulation knows -json -o only")
        records, missing = [], []
        for name in names:
            tasks = self._named(name)
            if not tasks:
                missing.append(name)
                records.append({"JOBID": name, "ERROR": f"Job <{name}> is not found"})
            records += [_record(task, fields) for task in tasks]
        if "-J" in given:
            called = [task for task in list(self.system.tasks.values()) if task.name == given["-J"]]
            records += [_record(task, fields) for task in called]
        return Answer(_document("bjobs", "JOBS", records), code=255 if missing else 0)

    def bkill(self, call: Call) -> Answer:
        _, names = _options(call.arguments, "s:J:u:r")
        lines, failed = [], False
        for name in names:
            tasks = self._named(name)
            alive = [task for task in tasks if not task.end_time]
            for task in alive:
                self.system.delete(task)
            if alive:
                lines.append(f"Job <{name}> is being terminated\n")
            else:
                failed = True
                why = "Job has already finished" if tasks else "No matching job found"
                lines.append(f"Job <{name}>: {why}\n")
        return Answer("".join(lines), "", 255 if failed else 0)

    def bstop(self, call: Call) -> Answer:
        lines, stopped = [], call.program == "bstop"
        for name in call.arguments:
            for task in self._named(name):
                self.system.hold(task, stopped)
                lines.append(f"Job <{name}> is being {'stopped' if stopped else 'resumed'}\n")
        return Answer("".join(lines), "", 0 if lines else 255)

    def bqueues(self, call: Call) -> Answer:
        records = []
        for queue in QUEUES:
            tasks = [task for task in list(self.system.tasks.values()) if task.queue == queue and not task.end_time]
            running = sum(task.running for task in tasks)
            status = "Open:Active" if queue == "normal" else "Open:Inact"
            counts = {"NJOBS": len(tasks), "PEND": len(tasks) - running, "RUN": running}
            records.append({"QUEUE_NAME": queue, "STATUS": status, "MAX": "-"} | _texts(counts))
        return Answer(_document("bqueues", "QUEUES", records))

    def bhosts(self, call: Call) -> Answer:
        used = self.system.used_slots
        counts = {"MAX": self.system.slots, "NJOBS": used, "RUN": used}
        return Answer(_document("bhosts", "HOSTS", [{"HOST_NAME": "node1", "STATUS": "ok"} | _texts(counts)]))

    def bparams(self, call: Call) -> Answer:
        return Answer(f"Default Queues:  {QUEUES[0]}\n")

    def _named(self, name: str) -> list[Task]:
        match = _ID.match(name)
        if match is None:
            return []
        return [task for task in self.system.of_number(int(match[1])) if not match[2] or task.index == int(match[2])]


def _record(task: Task, fields: list[str]) -> dict[str, str]:
    ended = bool(task.end_time)
    failed = ended and (task.deleted or task.exit_code != 0)
    values = {
        "jobid": str(task.number),
        "jobindex": str(task.index or 0),
        "job_name": task.name if task.index is None else f"{task.name}[{task.index}]",
        "stat": _state(task, failed=failed),
        "queue": task.queue,
        "exec_host": "node1" if task.start_time else "",
        "start_time": _moment(task.start_time),
        "finish_time": _moment(task.end_time) + (" L" if ended else ""),
        "exit_code": str(task.exit_code if task.exit_code >= 0 else 128 - task.exit_code) if failed else "",
        "exit_reason": "TERM_OWNER: job killed by owner" if failed and task.deleted else "",
        "pend_reason": "" if task.start_time or ended else "Job slot limit reached;",
        "cpu_used": f"{task.cpu_seconds:.1f} second(s)",
        "run_time": f"{int(task.seconds)} second(s)",
        "max_mem": f"{max(1, task.max_rss_kib // 1024)} Mbytes" if task.start_time else "",
    }
    return {field.upper(): values[field] for field in fields}


def _state(task: Task, *, failed: bool) -> str:
    if task.end_time:
        return "EXIT" if failed else "DONE"
    return "RUN" if task.start_time else "PSUSP" if task.held else "PEND"


def _moment(seconds: float) -> str:
    return time.strftime("%b %e %H:%M:%S %Y", time.localtime(seconds)) if seconds else ""


def _texts(counts: dict[str, int]) -> dict[str, str]:
    return {key: str(value) for key, value in counts.items()}


def _document(command: str, what: str, records: list[dict[str, Any]]) -> str:
    return json.dumps({"COMMAND": command, what: len(records), "RECORDS": records}, indent=2) + "\n"


def _options(
    arguments: list[str], letters: str, long: list[str] | None = None
) -> tuple[list[tuple[str, str]], list[str]]:
    """Read options of one letter, and `-cwd DIR` and its like, which LSF spells with one dash."""
    known = {name.rstrip("=") for name in long or ()}
    spelled = [f"-{one}" if one[:1] == "-" and one[1:] in known else one for one in arguments]
    try:
        options, rest = getopt.getopt(spelled, letters, long or [])
    except getopt.GetoptError as error:
        raise UsageError(str(error)) from None
    return [(name.replace("--", "-"), value) for name, value in options], rest


if __name__ == "__main__":
    lsf = Lsf(int(sys.argv[2]))
    serve(Path(sys.argv[1]), lsf.system, lsf.answer)
