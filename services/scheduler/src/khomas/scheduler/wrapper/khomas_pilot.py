#!/usr/bin/env python3
# Runs on Python 3.6 and newer with the standard library alone.
"""Run jobs of a pool on a node, one after the other, inside one job of the batch system.

`python3 khomas_pilot.py SPOOL PILOT --cpu-milli N --memory-bytes N --wall-seconds S --idle-seconds S`; what is in the
spool is described in khomas_pool.py.

It tests the node and itself, and takes nothing when the test fails. Then it leases jobs that fit by renaming them
into its folder, and runs them in children that do not start another interpreter. It looks for cancel markers every
second; SIGTERM to it is SIGTERM to its jobs, which failed then. It takes no job that would not end within its own wall
time, and ends when nothing in the pool fits into it.
"""

import argparse
import contextlib
import gc
import os
import random
import select
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Dict, List, Set

if TYPE_CHECKING:
    from khomas.scheduler.wrapper import khomas_job, khomas_runner
else:
    import khomas_job
    import khomas_runner

BEAT_SECONDS = 3.0
LOOK_SECONDS = 0.25
# When it has been idle for a while.
SLOW_LOOK_SECONDS = 1.0
RELOOK_SECONDS = 0.05
CANCEL_SECONDS = 1.0
# A pilot that comes when everything is done does not wait for more.
UNUSED_SECONDS = 5.0
# Entries of the pool that are kept in mind from one look at it.
KEPT = 256
LEAST_DISK_BYTES = 64 << 20
# As the contract has it.
PILOT_ABORTED = 410
# What is left of the wall time when the last jobs are taken, so that they can be killed and tell of it.
DRAIN_SECONDS = 60.0


class Entry:
    """A job of the pool, as its name tells."""

    def __init__(self, name: str) -> None:
        self.name = name
        _, self.batch, index, self.token, cpu, memory, wall = name.split(".")
        self.index = 0 if index == "-" else int(index)
        self.cpu_milli, self.memory_bytes, self.wall_s = int(cpu), int(memory), int(wall)


def failure_of(spool: str, folder: str, work: str) -> str:
    """Test the node; say what is wrong with it."""
    if sys.version_info < (3, 6):
        return "Python %d.%d is too old: 3.6 is the oldest" % sys.version_info[:2]
    probe = os.path.join(folder, "heartbeat.probe")
    try:
        with open(probe, "w") as stream:
            stream.write("khomas")
        os.rename(probe, probe + "d")
        with open(probe + "d") as stream:
            content = stream.read()
        os.unlink(probe + "d")
        os.listdir(os.path.join(spool, "pool"))
    except OSError as error:
        return "the spool cannot be used from here: %s" % error
    if content != "khomas":
        return "the spool gave back something else than was written"
    for place in (spool, work):
        free = shutil.disk_usage(place).free
        if free < LEAST_DISK_BYTES:
            return "%d bytes are free in %s, %d are needed" % (free, place, LEAST_DISK_BYTES)
    return ""


class Pilot:
    """Takes jobs while they fit."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.spool = os.path.abspath(options.spool)
        self.folder = os.path.join(self.spool, "pilots", options.pilot)
        self.cpu_milli = options.cpu_milli
        # 0 = it takes jobs that say nothing about memory, else those that do.
        self.memory_bytes = options.memory_bytes
        self.deadline = time.monotonic() + options.wall_seconds
        self.drain = min(DRAIN_SECONDS, options.wall_seconds / 10)
        self.idle_seconds = options.idle_seconds
        self.known: List[Entry] = []
        self.workers: Dict[int, "khomas_runner.Worker"] = {}
        self.idle: List["khomas_runner.Worker"] = []
        self.running: Dict[str, Entry] = {}
        # Jobs that were told to end.
        self.told: Set[str] = set()
        self.ran = 0
        self.beaten = self.looked = -60.0
        self.stopping = False
        self.wrapper = os.getppid()
        # Whether the last look found jobs, and none of them will ever fit.
        self.useless = False

    def left(self) -> float:
        return float(self.deadline - time.monotonic() - self.drain)

    # --------------------------------------------------------------------------------------- take

    def take_jobs(self) -> None:
        """Lease what fits and start it."""
        free = self.free()
        if free <= 0 or self.left() <= 0:
            return
        if not self.known:
            self.known = self.look()
        while self.known and free > 0:
            entry = self.known.pop()
            # One that does not fit now is found again by the next look.
            if self.fits(entry) and self.lease(entry):
                self.start(entry)
                free = self.free()

    def look(self) -> List[Entry]:
        """The oldest in the pool, in an order of its own: or all pilots go for the same."""
        now = time.monotonic()
        if now - self.looked < RELOOK_SECONDS:
            return []
        self.looked = now
        names = sorted(os.listdir(os.path.join(self.spool, "pool")))
        found = [entry for entry in map(Entry, names) if self.suits(entry)][:KEPT]
        self.useless = bool(names) and not found
        random.shuffle(found)
        return found

    def free(self) -> int:
        return int(self.cpu_milli - sum(entry.cpu_milli for entry in self.running.values()))

    def free_memory(self) -> int:
        return int(self.memory_bytes - sum(entry.memory_bytes for entry in self.running.values()))

    def suits(self, entry: Entry) -> bool:
        """Whether it can run here when nothing else does."""
        return (
            bool(entry.memory_bytes) == bool(self.memory_bytes)
            and entry.cpu_milli <= self.cpu_milli
            and entry.memory_bytes <= self.memory_bytes
            and entry.wall_s <= self.left()
        )

    def fits(self, entry: Entry) -> bool:
        """Whether it can run here now."""
        return (
            entry.cpu_milli <= self.free() and entry.memory_bytes <= self.free_memory() and entry.wall_s <= self.left()
        )

    def lease(self, entry: Entry) -> bool:
        """Take one out of the pool; False when another pilot was quicker, or the job needs no run any more."""
        try:
            os.rename(os.path.join(self.spool, "pool", entry.name), os.path.join(self.folder, entry.name))
        except FileNotFoundError:
            return False
        begun = os.path.exists(os.path.join(self.job(entry.token), "started"))
        if begun or not self.lay_out(entry):
            self.give_up(entry)
            return False
        return True

    def lay_out(self, entry: Entry) -> bool:
        """Make the job folder; False when the job was purged."""
        try:
            return khomas_job.lay_out(self.spool, entry.batch, entry.index) is not None
        except FileNotFoundError:
            return False

    def job(self, token: str) -> str:
        return os.path.join(self.spool, "jobs", token)

    def give_up(self, entry: Entry) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.folder, entry.name))

    # ---------------------------------------------------------------------------------------- run

    def start(self, entry: Entry) -> None:
        self.running[entry.token] = entry
        (self.idle.pop() if self.idle else self.hire()).give(entry.token, self.job(entry.token))

    def hire(self) -> "khomas_runner.Worker":
        inherited = [handle for other in self.workers.values() for handle in (other.orders, other.results)]
        worker = khomas_runner.Worker(inherited)
        self.workers[worker.results] = worker
        return worker

    def listen(self, seconds: float) -> None:
        """Wait for jobs to end."""
        for handle in select.select(list(self.workers), [], [], seconds)[0]:
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

    def end(self, token: str) -> None:
        """Tell first, then let go of the lease: the job is always found in one of the places."""
        record = os.path.join(self.job(token), "exit.json")
        if os.path.exists(record):
            if self.stopping or self.orphaned():
                self.blame_pilot(token, record)
            open(os.path.join(self.spool, "ended", token), "w").close()
        self.give_up(self.running.pop(token))
        self.told.discard(token)
        self.ran += 1

    def blame_pilot(self, token: str, path: str) -> None:
        """Say that nobody wanted the end of the job, and that it was not its fault; a user's order has a grace."""
        record, order = khomas_job.read_json(path), {}
        with contextlib.suppress(FileNotFoundError):
            order = khomas_job.read_json(os.path.join(self.job(token), "cancel"))
        if record["state"] != "SUCCEEDED" and "grace_s" not in order:
            record.update(state="FAILED", reason=PILOT_ABORTED, reason_name="INFRA_PILOT_ABORTED")
            khomas_job.write_json(path, dict(record, message="its pilot was told to end"))

    def end_orphans(self) -> None:
        """Kill what a killed worker left behind."""
        workers = {worker.pid for worker in self.workers.values()}
        for pid in khomas_job.children(os.getpid()):
            if pid not in workers:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def cancel(self) -> None:
        """Pass on the wish that a job end; when it is this pilot that shall end, to all its jobs."""
        for worker in self.workers.values():
            if not worker.token or worker.token in self.told:
                continue
            asked = self.asked(worker.token)
            if self.stopping and not asked:
                khomas_job.write_json(os.path.join(self.job(worker.token), "cancel"), {})
            if self.stopping or asked:
                self.told.add(worker.token)
                os.kill(worker.pid, signal.SIGTERM)

    def asked(self, token: str) -> bool:
        """Whether a job is to end. Listed, because a node may remember for a minute that a file is not there."""
        try:
            return "cancel" in os.listdir(self.job(token))
        except FileNotFoundError:
            return False

    # --------------------------------------------------------------------------------------- loop

    def serve(self) -> None:
        signal.signal(signal.SIGTERM, self.stop)
        khomas_job.become_subreaper()
        gc.collect()
        if hasattr(gc, "freeze"):
            gc.freeze()  # children share this memory longer
        idle_since = cancelled = time.monotonic()
        while True:
            if self.orphaned():
                self.stopping = True
            if not self.stopping:
                self.take_jobs()
            self.beat()
            now = time.monotonic()
            if self.running:
                idle_since = now
            elif self.done(now - idle_since):
                self.beat(last=True)
                return
            if self.stopping or now - cancelled > CANCEL_SECONDS:
                self.cancel()
                cancelled = now
            self.listen(SLOW_LOOK_SECONDS if now - idle_since > UNUSED_SECONDS else LOOK_SECONDS)

    def orphaned(self) -> bool:
        """Whether the wrapper of this pilot was killed: then the batch system believes that all is over."""
        return os.getppid() != self.wrapper

    def done(self, idle: float) -> bool:
        """Whether to end, when nothing runs."""
        patience = self.idle_seconds if self.ran else min(UNUSED_SECONDS, self.idle_seconds)
        return self.stopping or self.useless or idle > patience or self.left() <= 0

    def stop(self, number: int, frame: Any) -> None:
        self.stopping = True

    def beat(self, failure: str = "", last: bool = False) -> None:
        """Say that it lives and what it could take."""
        if failure or last or time.monotonic() - self.beaten > BEAT_SECONDS:
            self.beaten = time.monotonic()
            told = {"host": khomas_job.HOST, "ran": self.ran, "failure": failure}
            told.update(cpu_milli=0 if self.stopping or last else self.free(), memory_bytes=self.free_memory())
            told.update(wall_s=self.left(), sums_memory=bool(self.memory_bytes))
            khomas_job.write_json(os.path.join(self.folder, "heartbeat"), told)


def main(arguments: List[str]) -> int:
    parser = argparse.ArgumentParser(description="Run jobs of a pool on this node.")
    parser.add_argument("spool")
    parser.add_argument("pilot")
    parser.add_argument("--cpu-milli", type=int, required=True)
    parser.add_argument("--memory-bytes", type=int, default=0)
    parser.add_argument("--wall-seconds", type=float, required=True)
    parser.add_argument("--idle-seconds", type=float, required=True)
    options = parser.parse_args(arguments)
    pilot = Pilot(options)
    failure = failure_of(pilot.spool, pilot.folder, os.getcwd())
    if failure:
        sys.stderr.write(failure + "\n")
        with contextlib.suppress(OSError):
            pilot.beat(failure)
        return 1
    try:
        pilot.serve()
    except FileNotFoundError:
        if os.path.isdir(pilot.folder):
            raise
        # It was given up: others have its jobs.
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
