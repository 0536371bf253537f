"""A small batch system for tests: slots, tasks, arrays. It runs what is submitted, as a real one would."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Task:
    """One job, or one element of an array."""

    number: int
    # None: no element of an array.
    index: int | None
    name: str
    queue: str
    # What runs, by a shell.
    script: str
    folder: str
    env: Mapping[str, str]
    output: str = "/dev/null"
    slots: int = 1
    submit_time: float = field(default_factory=time.time)
    start_time: float = 0.0
    end_time: float = 0.0
    # Negative = ended by this signal.
    exit_code: int = 0
    deleted: bool = False
    held: bool = False
    cpu_seconds: float = 0.0
    max_rss_kib: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def running(self) -> bool:
        return bool(self.start_time) and not self.end_time

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (self.end_time or time.time()) - self.start_time if self.start_time else 0.0


class BatchSystem:
    """Runs tasks in the order of their submission in a fixed number of slots; keeps what has ended as history."""

    def __init__(self, slots: int, kill_seconds: float) -> None:
        self.slots = slots
        self.tasks: dict[tuple[int, int | None], Task] = {}
        self._kill_seconds = kill_seconds
        self._number = 0
        self._waiting: list[Task] = []
        self._free = slots
        self._lock = threading.RLock()

    def next_number(self) -> int:
        """Return a number for a new job."""
        with self._lock:
            self._number += 1
            return self._number

    def submit(self, tasks: Iterable[Task]) -> None:
        """Take jobs."""
        with self._lock:
            for task in tasks:
                self.tasks[task.number, task.index] = task
                self._waiting.append(task)
            self._start_what_fits()

    def of_number(self, number: int) -> list[Task]:
        """Return a job, or all elements of an array."""
        return [task for (one, _), task in self.tasks.items() if one == number]

    @property
    def used_slots(self) -> int:
        return self.slots - self._free

    def delete(self, task: Task) -> None:
        """End it: SIGTERM, later SIGKILL; a waiting one just ends."""
        with self._lock:
            task.deleted = True
            if task in self._waiting:
                self._waiting.remove(task)
                task.end_time = time.time()
            if task.running:
                _signal(task, signal.SIGTERM)
                killing = threading.Timer(self._kill_seconds, _signal, (task, signal.SIGKILL))
                killing.daemon = True
                killing.start()

    def hold(self, task: Task, held: bool) -> None:
        """Keep it from starting, or let it go on."""
        with self._lock:
            task.held = held
            self._start_what_fits()

    def end_all(self) -> None:
        """Leave nothing behind."""
        with self._lock:
            self._waiting.clear()
            for task in self.tasks.values():
                _signal(task, signal.SIGKILL)

    def _start_what_fits(self) -> None:
        while (task := next((one for one in self._waiting if not one.held), None)) and task.slots <= self._free:
            self._waiting.remove(task)
            self._free -= task.slots
            task.start_time = time.time()
            with Path(task.output).open("ab") as output:
                task.process = subprocess.Popen(
                    ["/bin/sh", "-c", task.script],
                    cwd=task.folder,
                    env=dict(task.env),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            threading.Thread(target=self._wait, args=(task, task.process), daemon=True).start()

    def _wait(self, task: Task, process: "subprocess.Popen[bytes]") -> None:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        with self._lock:
            task.exit_code = process.returncode
            task.cpu_seconds = usage.ru_utime + usage.ru_stime
            task.max_rss_kib = usage.ru_maxrss
            task.end_time = time.time()
            self._free += task.slots
            self._start_what_fits()


def _signal(task: Task, number: signal.Signals) -> None:
    """Send it to the whole session, as batch systems do."""
    if task.running and task.process is not None and task.process.returncode is None:
        os.killpg(task.process.pid, number)
