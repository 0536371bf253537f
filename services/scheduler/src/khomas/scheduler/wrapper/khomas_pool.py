#!/usr/bin/env python3
# Runs on Python 3.6 and newer with the standard library alone.
"""Keep the pool of jobs that wait for pilots, beside the job folders: `python3 khomas_pool.py OPERATION SPOOL …`.

pool/ENTRY           waits for a pilot; the name says all that a pilot asks, so nobody opens a file
held/ENTRY           waits, and is not to be taken
pilots/PILOT/        made before the pilot is submitted, so that there are never more of them than allowed
pilots/PILOT/size    what it will have
pilots/PILOT/ENTRY   leased: renamed out of the pool, which only one pilot can do
pilots/PILOT/heartbeat   what the pilot says of itself every few seconds; its time is that of the file
batches/ID/needs     the jobs of this submission are to be in the pool: from here on they have arrived

ENTRY is TIME.BATCH.INDEX.TOKEN.CPU_MILLI.MEMORY_BYTES.WALL_S; INDEX is "-" when the job went alone.
"""

import contextlib
import fcntl
import json
import os
import sys
import time
import uuid
from typing import Any, Dict, Iterable, List, Optional, Set

Record = Dict[str, Any]
BEAT = "heartbeat"
SIZE = "size"
# As the contract has it.
PILOT_ABORTED = 410


def read_json(path: str) -> Any:
    """Return what a file holds, None when there is none or it is not whole."""
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return None


def write(path: str, value: Any) -> None:
    """Write so that a reader finds the whole file or none, durably."""
    with open(path + ".tmp", "w") as stream:
        json.dump(value, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(path + ".tmp", path)


def moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + ".%06dZ" % (seconds % 1 * 1e6)


def sync(folder: str) -> None:
    """Make the names in a folder durable, all with one write."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Entry:
    """A job of the pool, as its name tells."""

    def __init__(self, name: str) -> None:
        self.name = name
        _, self.batch, self.index, self.token, cpu, memory, wall = name.split(".")
        self.cpu_milli, self.memory_bytes, self.wall_s = int(cpu), int(memory), int(wall)


def entries_in(folder: str) -> List[str]:
    """The jobs among the files of a folder."""
    return [name for name in os.listdir(folder) if name.count(".") == 6]


class Room:
    """What a pilot can take, or shall be able to."""

    def __init__(self, cpu_milli: int, memory_bytes: int, left_s: float, sums_memory: bool) -> None:
        self.cpu_milli, self.memory_bytes, self.left_s = cpu_milli, memory_bytes, left_s
        # Jobs that say how much memory they need and those that do not never share a pilot.
        self.sums_memory = sums_memory
        self.used_cpu = self.used_memory = 0

    def takes(self, entry: Entry) -> bool:
        return (
            self.sums_memory == bool(entry.memory_bytes)
            and self.used_cpu + entry.cpu_milli <= self.cpu_milli
            and self.used_memory + entry.memory_bytes <= self.memory_bytes
            and entry.wall_s <= self.left_s
        )

    def take(self, entry: Entry) -> None:
        self.used_cpu += entry.cpu_milli
        self.used_memory += entry.memory_bytes


class Pool:
    """The folders under one root. Whoever changes more than one of them holds the lock."""

    def __init__(self, root: str) -> None:
        self.root = root
        # By the clock of the file system, which is that of the heartbeats.
        self.now = time.time()
        for name in ("pool", "held", "pilots"):
            os.makedirs(self.path(name), mode=0o700, exist_ok=True)

    def path(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)

    def age(self, path: str) -> float:
        """Seconds since a file was written."""
        return max(0.0, self.now - os.stat(path).st_mtime)

    # --------------------------------------------------------------------------------------- jobs

    def add(self, batch: str, cpu: str, memory: str, wall: str) -> Record:
        """Put the jobs of a submission into the pool."""
        needs = {"time": int(time.time() * 1000), "cpu_milli": int(cpu), "memory_bytes": int(memory)}
        needs["wall_s"] = int(wall)
        write(self.path("batches", batch, "needs"), needs)
        for entry in self.entries(batch, needs):
            open(self.path("pool", entry), "w").close()
        sync(self.path("pool"))
        return {"native": batch}

    def entries(self, batch: str, needs: Record) -> List[str]:
        tokens = self.tokens_of(batch)
        what = "%d.%d.%d" % (needs["cpu_milli"], needs["memory_bytes"], needs["wall_s"])
        alone = len(tokens) == 1
        return [
            "%013d.%s.%s.%s.%s" % (needs["time"], batch, "-" if alone else "%06d" % index, token, what)
            for index, token in enumerate(tokens)
        ]

    def tokens_of(self, batch: str) -> List[str]:
        with open(self.path("batches", batch, "tokens")) as stream:
            return stream.read().split()

    def batch_of(self, token: str) -> str:
        """The submission that a job went with, as khomas_spool.py notes it; empty when there is none."""
        try:
            with open(self.path("places", token)) as stream:
                return stream.read()
        except FileNotFoundError:
            return ""

    def found(self, *batches: str) -> Record:
        """Which of these submissions have arrived; what a crash kept from the pool is put there."""
        natives = []
        for batch in batches:
            needs = read_json(self.path("batches", batch, "needs"))
            if needs is None:
                continue
            natives.append(batch)
            there = self.all_entries()
            for entry in self.entries(batch, needs):
                # One that is taken meanwhile comes twice: whoever is second finds the job begun.
                if entry not in there and not self.begun(entry) and self.batch_of(Entry(entry).token) == batch:
                    open(self.path("pool", entry), "w").close()
        sync(self.path("pool"))
        return {"found": natives}

    def all_entries(self) -> Set[str]:
        found = set(os.listdir(self.path("pool"))) | set(os.listdir(self.path("held")))
        for pilot in os.listdir(self.path("pilots")):
            found |= set(os.listdir(self.path("pilots", pilot)))
        return found

    def hold(self, *places: str) -> Record:
        """Take waiting jobs out of reach; a place is BATCH:INDEX,INDEX…"""
        return self.move("pool", "held", places)

    def release(self, *places: str) -> Record:
        """Give back what is held."""
        return self.move("held", "pool", places)

    def drop(self, *places: str) -> Record:
        """Forget jobs that have ended before a pilot took them."""
        return self.move("pool", None, places)

    def move(self, source: str, target: Optional[str], places: Iterable[str]) -> Record:
        wanted, done = set(), 0
        for place in places:
            batch, _, indexes = place.partition(":")
            wanted |= {(batch, index) for index in indexes.split(",")}  # as in the names: "-" or six digits
        for name in os.listdir(self.path(source)):
            entry = Entry(name)
            if (entry.batch, entry.index) in wanted:
                with contextlib.suppress(FileNotFoundError):  # a pilot was quicker
                    if target is None:
                        os.unlink(self.path(source, name))
                    else:
                        os.rename(self.path(source, name), self.path(target, name))
                    done += 1
        return {"done": done}

    # ------------------------------------------------------------------------------------- pilots

    def look(self) -> Record:
        """Tell of everything; the pool first, so that what is taken meanwhile is seen at least once."""
        pool, held = os.listdir(self.path("pool")), os.listdir(self.path("held"))
        pilots = {pilot: self.pilot(pilot) for pilot in os.listdir(self.path("pilots"))}
        return {"pool": pool, "held": held, "pilots": pilots}

    def pilot(self, name: str) -> Record:
        folder, job = self.path("pilots", name), self.path("jobs", name)
        beat = os.path.join(folder, BEAT)
        told = read_json(beat)
        batch = self.batch_of(name)
        native = read_json(self.path("batches", batch, "native")) if batch else None
        return {
            # When each of its jobs began; 0 = it has not.
            "leases": {entry: self.begun(entry) for entry in entries_in(folder)},
            "told": told,
            "quiet_s": self.age(beat) if told else self.age(folder),
            "place": dict(native, index=self.tokens_of(batch).index(name)) if native else None,
            "end": read_json(os.path.join(job, "exit.json")),
        }

    def begun(self, entry: str) -> float:
        try:
            return os.stat(self.path("jobs", Entry(entry).token, "started")).st_mtime
        except OSError:
            return 0.0

    def reserve(self, most: str, cpu_milli: str, memory_bytes: str, wall_s: str) -> Record:
        """Make places for the pilots that the waiting jobs need beyond those that there are, `most` in all.

        A pilot asks for what the jobs that fill it ask for together, and never for more than these limits; with 0
        thousandths of a core each is made for one job.
        """
        pilots = [self.room(name) for name in os.listdir(self.path("pilots"))]
        rooms = [room for room in pilots if room is not None and room.cpu_milli > 0]
        waiting = [Entry(name) for name in sorted(os.listdir(self.path("pool")))]
        fresh = self.planned(waiting, rooms, int(most) - len(pilots), int(cpu_milli), int(memory_bytes), float(wall_s))
        reserved = {}
        for sums_memory in (False, True):
            some = [room for room in fresh if room.sums_memory == sums_memory]
            if some:
                size = self.size(some, [one for one in waiting if bool(one.memory_bytes) == sums_memory], float(wall_s))
                reserved.update({uuid.uuid4().hex: size for _ in some})
        for name, size in reserved.items():
            os.mkdir(self.path("pilots", name), 0o700)
            write(self.path("pilots", name, SIZE), size)
        return {"reserved": reserved}

    def room(self, pilot: str) -> Optional[Room]:
        """What is free in a pilot; None when it will take nothing."""
        told = read_json(self.path("pilots", pilot, BEAT)) or read_json(self.path("pilots", pilot, SIZE))
        if told is None or told.get("failure"):
            return None
        return Room(told["cpu_milli"], told["memory_bytes"], told["wall_s"], told["sums_memory"])

    def planned(
        self, waiting: List[Entry], rooms: List[Room], most: int, cpu: int, memory: int, wall: float
    ) -> List[Room]:
        """The pilots to be: the jobs, oldest first, into the first one with room."""
        fresh = []  # type: List[Room]
        for entry in waiting:
            room = next((one for one in rooms + fresh if one.takes(entry)), None)
            if room is None:
                if len(fresh) >= most:
                    break
                room = Room(
                    cpu or entry.cpu_milli, memory if cpu else entry.memory_bytes, wall, bool(entry.memory_bytes)
                )
                fresh.append(room)
            room.take(entry)
        return fresh

    def size(self, rooms: List[Room], waiting: List[Entry], most_s: float) -> Record:
        """One size for all, so that they are one array; time enough for all that waits."""
        cpu, memory = max(room.used_cpu for room in rooms), max(room.used_memory for room in rooms)
        longest = max(entry.wall_s for entry in waiting)
        work = sum(entry.cpu_milli * entry.wall_s for entry in waiting) / (cpu * len(rooms))
        stated = all(entry.wall_s for entry in waiting)
        wall = min(most_s, 1.25 * max(longest, work) + 60) if stated else most_s
        return {"cpu_milli": cpu, "memory_bytes": memory, "wall_s": wall, "sums_memory": memory > 0}

    def bury(self, *pilots: str) -> Record:
        """Give back what pilots that are gone had leased and not begun; what they had begun has failed."""
        back, lost = [], []  # type: List[str], List[str]
        for pilot in pilots:
            folder = self.path("pilots", pilot)
            with contextlib.suppress(FileNotFoundError):
                for name in entries_in(folder):
                    if self.begun(name):
                        self.fail(Entry(name))
                        os.unlink(os.path.join(folder, name))
                        lost.append(name)
                    else:
                        os.rename(os.path.join(folder, name), self.path("pool", name))
                        back.append(name)
                for name in os.listdir(folder):
                    os.unlink(os.path.join(folder, name))
                os.rmdir(folder)
        return {"back": back, "lost": lost}

    def fail(self, entry: Entry) -> None:
        """Write the exit record that nobody else can write any more; one that was cancelled has its own end."""
        folder = self.path("jobs", entry.token)
        path = os.path.join(folder, "exit.json")
        if not os.path.isdir(folder):
            return
        record = read_json(path)
        if "grace_s" not in (read_json(os.path.join(folder, "cancel")) or {}):
            if record is None or record["state"] != "SUCCEEDED":
                # Whoever killed the pilot may have killed the job first, and its wrapper told of that.
                started = read_json(os.path.join(folder, "started")) or {}
                told = {"format": 1, "token": entry.token, "host": started.get("host", ""), "exit_code": None}
                told.update(start_time=started.get("time"), end_time=moment(self.now), outputs=[])
                told.update(record or {}, state="FAILED", reason=PILOT_ABORTED, reason_name="INFRA_PILOT_ABORTED")
                write(path, dict(told, message="its pilot ended while it ran"))
        elif record is None:
            return
        open(self.path("ended", entry.token), "w").close()


OPERATIONS = ("add", "found", "hold", "release", "drop", "look", "reserve", "bury")


def main(arguments: List[str]) -> int:
    operation, root = arguments[:2]
    if operation not in OPERATIONS:
        raise ValueError("no such operation: %r" % operation)
    pool = Pool(os.path.abspath(root))
    with open(pool.path("pool.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(pool.path("pool.lock"))
        pool.now = os.fstat(lock.fileno()).st_mtime
        sys.stdout.write(json.dumps(getattr(pool, operation)(*arguments[2:])) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
