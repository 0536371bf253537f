"""Emulates the commands of PBS Professional 2022 in the formats of its manuals: `python -m … FOLDER SLOTS`."""

import getopt
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.backends.recorded.batch_system import BatchSystem, Task
from tests.backends.recorded.server import Answer, Call, UsageError, serve

PROGRAMS = ("qsub", "qstat", "qdel", "qhold", "qrls", "pbsnodes")
SERVER = "pbs"
QUEUES = ("workq", "short")
_ID = re.compile(r"(\d+)(?:\[(\d*)\])?(?:\.\w+)?$")


class Pbs:
    """The server's answers."""

    array_option = "-J"
    index_variable = "PBS_ARRAY_INDEX"

    def __init__(self, slots: int) -> None:
        self.system = BatchSystem(slots, kill_seconds=2.0)

    def answer(self, call: Call) -> Answer:
        """Answer one command."""
        handlers = {
            "qsub": self.qsub,
            "qstat": self.qstat,
            "qdel": self.qdel,
            "qhold": self.qhold,
            "qrls": self.qhold,
            "pbsnodes": self.pbsnodes,
        }
        return handlers[call.program](call)

    def qsub(self, call: Call) -> Answer:
        options, scripts = _options(call.arguments, "N:J:t:o:e:j:q:l:r:S:A:P:p:W:m:k:v:")
        given = dict(options)
        limits = {value.partition("=")[0]: value.partition("=")[2] for letter, value in options if letter == "-l"}
        if given.get("-q", QUEUES[0]) not in QUEUES:
            return Answer("", "qsub: Unknown queue\n", 170)
        if len(scripts) != 1:
            raise UsageError("script file: one is needed")
        cpus = re.search(r"(?:ncpus|ppn)=(\d+)", limits.get("select", limits.get("nodes", "")))
        slots = int(cpus[1]) if cpus else 1
        if slots > self.system.slots:
            return Answer("", "qsub: Job exceeds queue and/or server resource limits\n", 188)
        number = self.system.next_number()
        self.system.submit(self._tasks(number, call, given, Path(call.cwd, scripts[0]).read_text(), slots))
        return Answer(f"{number}{'[]' if self.array_option in given else ''}.{SERVER}\n")

    def _tasks(self, number: int, call: Call, given: dict[str, str], script: str, slots: int) -> Iterator[Task]:
        indices: list[int | None] = [None]
        if elements := given.get(self.array_option):
            first, last = (int(part) for part in elements.split("-"))
            if first >= last:
                raise UsageError(f"illegal {self.array_option} value: {elements}")
            indices = list(range(first, last + 1))
        for index in indices:
            name = f"{number}[{index}]" if index is not None else str(number)
            env = {
                "HOME": call.env.get("HOME", "/"),
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "PBS_JOBID": f"{name}.{SERVER}",
                "PBS_ENVIRONMENT": "PBS_BATCH",
            }
            if index is not None:
                env[self.index_variable] = str(index)
            yield Task(
                number,
                index,
                given.get("-N", "STDIN"),
                given.get("-q", QUEUES[0]),
                script,
                call.cwd,
                env,
                output=given.get("-o", "/dev/null").partition("^")[0],
                slots=slots,
            )

    def qstat(self, call: Call) -> Answer:
        options, names = _options(call.arguments, "tfxQBF:")
        given = dict(options)
        if given.get("-F") != "json" or "-f" not in given:
            raise UsageError("this emulation knows -f -F json only")
        if "-B" in given:
            return Answer(_document({"Server": {SERVER: {"server_state": "Active", "default_queue": QUEUES[0]}}}))
        if "-Q" in given:
            return Answer(_document({"Queue": {queue: self._queue(queue) for queue in QUEUES}}))
        jobs: dict[str, Any] = {}
        errors: list[str] = []
        everything = [f"{number}[]" if index is not None else str(number) for number, index in self.system.tasks]
        for name in names or dict.fromkeys(everything):
            tasks = self._named(name)
            if not tasks:
                errors.append(f"qstat: Unknown Job Id {name}\n")
            elif "-x" not in given and all(task.end_time for task in tasks):
                errors.append(f"qstat: {name} Job has finished, use -x or -H to obtain historical job information\n")
            else:
                jobs.update(_job_entries(tasks, unfolded="-t" in given))
        code = 0 if not errors else 153 if "Unknown" in errors[-1] else 35
        return Answer(_document({"Jobs": jobs} if jobs else {}), "".join(errors), code)

    def _queue(self, queue: str) -> dict[str, Any]:
        tasks = [task for task in list(self.system.tasks.values()) if task.queue == queue and not task.end_time]
        running = sum(task.running for task in tasks)
        return {
            "queue_type": "Execution",
            "total_jobs": len(tasks),
            "state_count": f"Transit:0 Queued:{len(tasks) - running} Held:0 Waiting:0 Running:{running} "
            "Exiting:0 Begun:0 ",
            "resources_max": {"walltime": "48:00:00"} if queue == "workq" else {"walltime": "01:00:00"},
            "enabled": "True",
            "started": "True",
        }

    def qdel(self, call: Call) -> Answer:
        _, names = _options(call.arguments, "W:x")
        errors = []
        for name in names:
            tasks = self._named(name)
            if not tasks:
                errors.append(f"qdel: Unknown Job Id {name}\n")
            elif all(task.end_time for task in tasks):
                errors.append(f"qdel: Job has finished {name}\n")
            for task in tasks:
                if not task.end_time:
                    self.system.delete(task)
        return Answer("", "".join(errors), 153 if errors else 0)

    def qhold(self, call: Call) -> Answer:
        _, names = _options(call.arguments, "h:")
        errors = [f"{call.program}: Unknown Job Id {name}\n" for name in names if not self._named(name)]
        for name in names:
            for task in self._named(name):
                self.system.hold(task, call.program == "qhold")
        return Answer("", "".join(errors), 153 if errors else 0)

    def pbsnodes(self, call: Call) -> Answer:
        node = {
            "Mom": "node1.example.org",
            "ntype": "PBS",
            "state": "free",
            "pcpus": self.system.slots,
            "resources_available": {"host": "node1", "mem": "16384000kb", "ncpus": self.system.slots},
            "resources_assigned": {"mem": "0kb", "ncpus": self.system.used_slots},
        }
        return Answer(_document({"nodes": {"node1": node}}))

    def _named(self, name: str) -> list[Task]:
        match = _ID.match(name)
        if match is None:
            return []
        tasks = self.system.of_number(int(match[1]))
        return [task for task in tasks if not match[2] or task.index == int(match[2])]


def _job_entries(tasks: list[Task], *, unfolded: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    first = tasks[0]
    if first.index is not None:
        ended = all(task.end_time for task in tasks)
        begun = any(task.start_time for task in tasks)
        yield (
            f"{first.number}[].{SERVER}",
            {
                "Job_Name": first.name,
                "job_state": "F" if ended else "B" if begun else "Q",
                "queue": first.queue,
                "server": SERVER,
                "array": "True",
            },
        )
    if first.index is None or unfolded:
        for task in tasks:
            index = "" if task.index is None else f"[{task.index}]"
            yield f"{task.number}{index}.{SERVER}", _job_entry(task)


def _job_entry(task: Task) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "Job_Name": task.name,
        "Job_Owner": "prod@login.example.org",
        "job_state": _state(task),
        "queue": task.queue,
        "server": SERVER,
        "ctime": time.ctime(task.submit_time),
        "Resource_List": {"ncpus": task.slots, "nodect": 1, "select": f"1:ncpus={task.slots}"},
    }
    if task.index is not None:
        entry |= {"array_id": f"{task.number}[].{SERVER}", "array_index": task.index}
    if task.start_time:
        entry |= {"exec_host": "node1/0", "stime": time.ctime(task.start_time)}
        entry["resources_used"] = {
            "cpupercent": 0,
            "cput": _clock(task.cpu_seconds),
            "mem": f"{task.max_rss_kib}kb",
            "ncpus": task.slots,
            "vmem": f"{task.max_rss_kib}kb",
            "walltime": _clock(task.seconds),
        }
    if task.end_time and task.start_time:
        entry["Exit_status"] = task.exit_code if task.exit_code >= 0 else 256 - task.exit_code
        entry["substate"] = 91 if task.deleted else 92 if task.exit_code == 0 else 93
    return entry


def _state(task: Task) -> str:
    if task.end_time:
        return "F"
    return "R" if task.start_time else "H" if task.held else "Q"


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _document(content: dict[str, Any]) -> str:
    head = {"timestamp": int(time.time()), "pbs_version": "2022.1.1", "pbs_server": SERVER}
    return json.dumps({**head, **content}, indent=4) + "\n"


def _options(arguments: list[str], letters: str) -> tuple[list[tuple[str, str]], list[str]]:
    try:
        return getopt.getopt(arguments, letters)
    except getopt.GetoptError as error:
        raise UsageError(str(error)) from None


if __name__ == "__main__":
    pbs = Pbs(int(sys.argv[2]))
    serve(Path(sys.argv[1]), pbs.system, pbs.answer)
