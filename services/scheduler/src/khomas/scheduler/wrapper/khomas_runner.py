#!/usr/bin/env python3
# Runs on Python 3.6 and newer with the standard library alone, hence:
# ruff: noqa: BLE001, PTH, T201, UP
"""Run the jobs of a spool folder on this machine: `python3 khomas_runner.py SPOOL`.

A small fork server that outlives whoever started it. One process a spool (a lock), no threads.

incoming/*.jsonl   orders, one a line: {"op": "submit", "manifest": {...}} or {"op": "cancel", "token", "grace_s"};
                   written elsewhere and renamed in, taken in the order of their names
wake               FIFO: a byte in it means new orders
jobs/TOKEN/        a job folder as khomas_job.py wants it; making it is what makes a job run once
journal.N.jsonl    what happened, one a line: {"event": "started" | "ended" | "vanished", "token", ...};
                   "ended" has the exit record. Only this process writes it. The last two files are kept.
runner.json        pid and slots in use, for people and for `list_resources`

A job holds its thousandths of a core and its memory from its start to its end. Workers are children, one a running
job, that each run the wrapper for one job after the other, without starting another interpreter. If this process is
killed, running jobs go on and leave their exit records; the next one finds them by pid and start time.
"""

import argparse
import collections
import fcntl
import gc
import json
import os
import select
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Set

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ctypes  # noqa: F401  what the wrapper imports late: here once, not once a job
import glob  # noqa: F401
import gzip  # noqa: F401
import hashlib  # noqa: F401
import shutil  # noqa: F401
import urllib.request  # noqa: F401

if TYPE_CHECKING:
    from khomas.scheduler.wrapper import khomas_job
else:
    import khomas_job

JOURNAL_BYTES = 64 << 20
WATCH_SECONDS = 0.25


class Worker:
    """A child that runs jobs: their folders go in by one pipe, a newline comes out by another at the end of each."""

    def __init__(self, inherited: List[int]) -> None:
        orders, self.orders = os.pipe()
        self.results, results = os.pipe()
        self.token = ""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # until the wrapper can handle it
        self.pid = os.fork()
        if self.pid == 0:
            for handle in [*inherited, self.orders, self.results]:
                os.close(handle)
            work(orders, results)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        os.close(orders)
        os.close(results)

    def give(self, token: str, folder: str) -> None:
        self.token = token
        os.write(self.orders, os.fsencode(folder) + b"\n")

    def bury(self) -> None:
        os.close(self.orders)
        os.close(self.results)
        os.waitpid(self.pid, 0)


def work(orders: int, results: int) -> None:
    """In the child: run jobs until the runner is gone, and end."""
    try:
        os.setsid()
        khomas_job.become_subreaper()
        signals = khomas_job.Signals(confirm="")
        with os.fdopen(orders, "rb") as folders:
            for folder in folders:
                khomas_job.run(os.fsdecode(folder[:-1]), signals)
                os.write(results, b"\n")
    except BrokenPipeError:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


class Slots:
    """Cores and memory to give away."""

    def __init__(self, cpu_milli: int, memory_bytes: int) -> None:
        self.cpu_milli = cpu_milli
        self.memory_bytes = memory_bytes
        self.used_cpu = 0
        self.used_memory = 0

    def take(self, need: "Need") -> bool:
        """Take what a job needs; one job alone may have more than there is."""
        fits = (
            self.used_cpu + need.cpu_milli <= self.cpu_milli
            and self.used_memory + need.memory_bytes <= self.memory_bytes
        )
        if not fits and self.used_cpu:
            return False
        self.used_cpu += need.cpu_milli
        self.used_memory += need.memory_bytes
        return True

    def give_back(self, need: "Need") -> None:
        self.used_cpu -= need.cpu_milli
        self.used_memory -= need.memory_bytes


class Need:
    """What a manifest asks for."""

    def __init__(self, manifest: Dict[str, Any]) -> None:
        resources = manifest.get("resources", {})
        self.cpu_milli = int(resources.get("cpu_milli") or 1000)
        self.memory_bytes = int(resources.get("memory_bytes") or 0)


class Journal:
    """What happened, for incremental readers. Written in batches, one write a batch."""

    def __init__(self, spool: str) -> None:
        self.spool = spool
        numbers = journal_numbers(spool)
        self.number = numbers[-1] if numbers else 1
        self.lines = []  # type: List[str]
        self.handle = self.open()
        if self.torn():
            self.turn()

    def path(self, number: int) -> str:
        return os.path.join(self.spool, "journal.%d.jsonl" % number)

    def open(self) -> int:
        return os.open(self.path(self.number), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def torn(self) -> bool:
        """Whether the last line was cut off by a crash."""
        with open(self.path(self.number), "rb") as stream:
            if stream.seek(0, os.SEEK_END) == 0:
                return False
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) != b"\n"

    def ended(self) -> Set[str]:
        """Tokens whose end is written."""
        found = set()
        for number in journal_numbers(self.spool):
            with open(self.path(number), encoding="utf-8", errors="replace") as stream:
                for line in stream:
                    if line.startswith('{"event": "ended"') and line.endswith("\n"):
                        found.add(json.loads(line)["token"])
        return found

    def add(self, event: str, token: str, **more: Any) -> None:
        self.lines.append(json.dumps(dict({"event": event, "token": token}, **more)) + "\n")

    def add_end(self, token: str, folder: str) -> None:
        with open(os.path.join(folder, "exit.json"), encoding="utf-8", errors="replace") as stream:
            record = " ".join(stream.read().split("\n"))
        self.lines.append('{"event": "ended", "token": %s, "record": %s}\n' % (json.dumps(token), record))

    def write(self) -> None:
        if self.lines:
            os.write(self.handle, "".join(self.lines).encode())
            self.lines.clear()
            if os.fstat(self.handle).st_size > JOURNAL_BYTES:
                self.turn()

    def turn(self) -> None:
        os.close(self.handle)
        self.number += 1
        self.handle = self.open()
        for number in journal_numbers(self.spool)[:-2]:
            os.unlink(self.path(number))


def journal_numbers(spool: str) -> List[int]:
    names = [name.split(".") for name in os.listdir(spool)]
    return sorted(int(name[1]) for name in names if name[0] == "journal" and name[-1] == "jsonl")


class Runner:
    """Takes orders, starts jobs while there are slots, and tells what became of them."""

    def __init__(self, spool: str, slots: Slots, lock: int, idle_seconds: float) -> None:
        self.spool = spool
        self.idle_seconds = idle_seconds
        self.jobs = os.path.join(spool, "jobs")
        self.incoming = os.path.join(spool, "incoming")
        self.slots = slots
        self.lock = lock
        self.workers = {}  # type: Dict[int, Worker]
        self.idle = []  # type: List[Worker]
        self.waiting = collections.OrderedDict()  # type: Dict[str, Need]
        self.needs = {}  # type: Dict[str, Need]
        self.adopted = {}  # type: Dict[str, Dict[str, Any]]
        self.journal = Journal(spool)
        self.fifo = -1
        self.state = {}  # type: Dict[str, int]
        self.announced = 0.0
        self.stopping = False

    def folder(self, token: str) -> str:
        return os.path.join(self.jobs, token)

    # ------------------------------------------------------------------------------------- orders

    def waiting_orders(self) -> List[str]:
        """Files that are complete: hidden ones are being written."""
        return sorted(name for name in os.listdir(self.incoming) if name.endswith(".jsonl") and name[0] != ".")

    def take_orders(self) -> None:
        for name in self.waiting_orders():
            path = os.path.join(self.incoming, name)
            with open(path, encoding="utf-8") as stream:
                orders = stream.readlines()
            for line in orders:
                try:
                    self.obey(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    sys.stderr.write("not an order, in %s: %s\n" % (name, line[:200]))
                self.turn_over()
            os.unlink(path)

    def obey(self, order: Dict[str, Any]) -> None:
        if order["op"] == "submit":
            self.accept(order["manifest"])
        elif order["op"] == "cancel":
            self.cancel(order["token"], order.get("grace_s"))

    def accept(self, manifest: Dict[str, Any]) -> None:
        """Make the job folder; a token that has one is accepted already."""
        token = manifest["token"]
        folder = self.folder(token)
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            if os.path.exists(os.path.join(folder, "job.json")):
                return
        khomas_job.write_json(os.path.join(folder, "job.json"), manifest)
        self.waiting[token] = Need(manifest)

    def cancel(self, token: str, grace: Optional[float]) -> None:
        folder = self.folder(token)
        if token in self.waiting:
            del self.waiting[token]
            manifest = khomas_job.read_json(os.path.join(folder, "job.json"))
            khomas_job.claim(folder)
            record = khomas_job.exit_record(manifest, "CANCELLED", "USER_CANCELLED", "cancelled before it started")
            khomas_job.write_json(os.path.join(folder, "exit.json"), record)
            self.journal.add_end(token, folder)
            return
        pid = self.pid_of(token)
        if pid:
            khomas_job.write_json(os.path.join(folder, "cancel"), {} if grace is None else {"grace_s": grace})
            os.kill(pid, signal.SIGTERM)

    def pid_of(self, token: str) -> int:
        for worker in self.workers.values():
            if worker.token == token:
                return worker.pid
        if token in self.adopted and khomas_job.lives(self.adopted[token]):
            return int(self.adopted[token]["pid"])
        return 0

    # --------------------------------------------------------------------------------------- jobs

    def start_jobs(self) -> None:
        while self.waiting:
            token = next(iter(self.waiting))
            need = self.waiting[token]
            if not self.slots.take(need):
                return
            del self.waiting[token]
            self.needs[token] = need
            self.journal.add("started", token, time=khomas_job.now(), host=khomas_job.HOST)
            (self.idle.pop() if self.idle else self.hire()).give(token, self.folder(token))

    def hire(self) -> Worker:
        inherited = [self.lock, self.fifo, self.journal.handle]
        for other in self.workers.values():
            inherited += [other.orders, other.results]
        worker = Worker(inherited)
        self.workers[worker.results] = worker
        return worker

    def listen(self, seconds: float) -> None:
        """Wait for results and orders."""
        ready = select.select([*self.workers, self.fifo], [], [], seconds)[0]
        for handle in ready:
            if handle == self.fifo:
                os.read(handle, 65536)
                continue
            worker = self.workers[handle]
            token, worker.token = worker.token, ""
            if os.read(handle, 1):
                self.idle.append(worker)
            else:
                del self.workers[handle]
                if worker in self.idle:
                    self.idle.remove(worker)
                worker.bury()
                self.end_orphans()
            if token:
                self.end(token)

    def end_orphans(self) -> None:
        """Kill what a killed worker left behind: its payload, ours now, must not go on unwatched."""
        workers = {worker.pid for worker in self.workers.values()}
        while True:
            orphans = [pid for pid in khomas_job.children(os.getpid()) if pid not in workers]
            if not orphans:
                return
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def watch_adopted(self) -> None:
        for token, owner in list(self.adopted.items()):
            if not khomas_job.lives(owner):
                del self.adopted[token]
                self.end(token)

    def end(self, token: str) -> None:
        """Give the slot back and tell; a job without an exit record was killed together with its wrapper."""
        self.slots.give_back(self.needs.pop(token))
        try:
            self.journal.add_end(token, self.folder(token))
        except OSError:
            self.journal.add("vanished", token)

    def reconcile(self) -> None:
        """After a start: find out from the folders what the runner before was doing."""
        told = self.journal.ended()
        found = [entry.name for entry in os.scandir(self.jobs)]
        for token in sorted(found):
            folder = self.folder(token)
            has = set(os.listdir(folder))
            if "exit.json" in has:
                if token not in told:
                    self.journal.add_end(token, folder)
                continue
            if "job.json" not in has:
                continue  # its order is still in incoming/
            need = Need(khomas_job.read_json(os.path.join(folder, "job.json")))
            if "started" not in has:
                self.waiting[token] = need
                continue
            self.needs[token] = need
            self.slots.used_cpu += need.cpu_milli
            self.slots.used_memory += need.memory_bytes
            self.adopted[token] = self.owner(folder)
        self.journal.write()

    def owner(self, folder: str) -> Dict[str, Any]:
        try:
            return dict(khomas_job.read_json(os.path.join(folder, "started")))
        except ValueError:
            return {"boot": ""}  # killed while it wrote this

    # --------------------------------------------------------------------------------------- loop

    def turn_over(self) -> None:
        """One round: whatever can go on goes on, and is told."""
        self.listen(0)
        self.start_jobs()
        if len(self.journal.lines) >= 64:
            self.journal.write()

    def serve(self, ready: int) -> None:
        khomas_job.become_subreaper()
        self.reconcile()
        self.open_fifo()
        signal.signal(signal.SIGTERM, self.stop)
        self.announce()
        if ready >= 0:
            os.close(ready)
        gc.collect()
        if hasattr(gc, "freeze"):
            gc.freeze()  # children share this memory longer
        idle_since = time.monotonic()
        while not self.stopping:
            self.take_orders()
            self.start_jobs()
            self.watch_adopted()
            self.journal.write()
            busy = bool(self.waiting or self.needs)
            if not busy or time.monotonic() - self.announced > 0.5:
                self.announce()
            if busy:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > self.idle_seconds and self.may_end():
                return
            self.listen(WATCH_SECONDS if self.adopted else min(5.0, self.idle_seconds))

    def stop(self, number: int, frame: Any) -> None:
        """On SIGTERM: end, and leave the jobs to the next runner."""
        self.stopping = True
        os.write(self.fifo, b"\n")  # wakes the loop

    def announce(self) -> None:
        """Write `runner.json` when it has changed."""
        state = {
            "pid": os.getpid(),
            "cpu_milli": self.slots.cpu_milli,
            "used_cpu_milli": self.slots.used_cpu,
            "memory_bytes": self.slots.memory_bytes,
            "used_memory_bytes": self.slots.used_memory,
            "running": len(self.needs),
            "queued": len(self.waiting),
        }
        self.announced = time.monotonic()
        if state != self.state:
            khomas_job.write_json(os.path.join(self.spool, "runner.json"), state)
            self.state = state

    def open_fifo(self) -> None:
        path = os.path.join(self.spool, "wake")
        if not os.path.exists(path):
            os.mkfifo(path, 0o600)
        self.fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # RDWR: never at its end

    def may_end(self) -> bool:
        """Close the FIFO, so that the next order starts a runner, then look whether one came before that."""
        os.close(self.fifo)
        if self.waiting_orders():
            self.open_fifo()
            return False
        return True


def take_lock(spool: str) -> Optional[int]:
    handle = os.open(os.path.join(spool, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    return handle


def detach(spool: str) -> int:
    """Go on as a process of its own; the one that was started returns when the answered handle is closed."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.setsid()
    os.close(reader)
    log = os.open(os.path.join(spool, "runner.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)
    os.chdir("/")
    return writer


def machine_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def main(arguments: List[str]) -> int:
    parser = argparse.ArgumentParser(description="Run the jobs of a spool folder on this machine.")
    parser.add_argument("spool")
    parser.add_argument("--cpu-milli", type=int, default=len(os.sched_getaffinity(0)) * 1000)
    parser.add_argument("--memory-bytes", type=int, default=machine_memory())
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="end after so long without a job")
    parser.add_argument("--detach", action="store_true", help="go on in the background")
    options = parser.parse_args(arguments)
    spool = os.path.abspath(options.spool)
    for folder in ("", "jobs", "incoming"):
        os.makedirs(os.path.join(spool, folder), mode=0o700, exist_ok=True)
    lock = take_lock(spool)
    if lock is None:
        return 0  # there is one already
    ready = detach(spool) if options.detach else -1
    slots = Slots(options.cpu_milli, options.memory_bytes)
    Runner(spool, slots, lock, options.idle_seconds).serve(ready)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
