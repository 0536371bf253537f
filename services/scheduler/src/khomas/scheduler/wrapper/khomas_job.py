#!/usr/bin/env python3
# Runs on Python 3.6 and newer with the standard library alone, hence:
# ruff: noqa: BLE001, PTH, S103, S310, SIM105, UP
"""Run one Khomas job on a node and leave an exit record: `python3 khomas_job.py run JOBDIR`.

Or `python3 khomas_job.py element SPOOL BATCH INDEX` for one job of a submission that khomas_spool.py wrote down; that
makes the job folder first, and `ended/TOKEN` after the exit record.

JOBDIR holds `job.json`, the manifest (README.md beside this file describes every field). What is left there:

started      who runs it (pid, host); made exclusively, so a job never runs twice in one folder
stdout, stderr
heartbeat    usage so far, every few seconds
sandbox/     small outputs that stay with the job
outputs/     other outputs by index, when the manifest names no place to upload them to
outputs.json what was made
exit.json    the exit record, written last and at once: state, reason, usage, outputs

What was in work/ and tmp/ is removed. Sections: records, processes, inputs, FITS, outputs, run.
"""

import base64
import contextlib
import errno
import functools
import json
import os
import pwd
import re
import resource
import select
import signal
import subprocess
import sys
import time
import zlib
from typing import Any, BinaryIO, Dict, Iterator, List, Optional, Tuple

VERSION = "1"
FORMAT = 1
REASONS = {
    "NONE": 0,
    "APP_EXIT_CODE": 200,
    "APP_SIGNAL": 201,
    "APP_CHECK_FAILED": 202,
    "APP_OUTPUT_MISSING": 203,
    "APP_NOT_FOUND": 204,
    "LIMIT_WALL": 300,
    "LIMIT_CPU": 301,
    "LIMIT_MEMORY": 302,
    "LIMIT_DISK": 303,
    "LIMIT_LOG_SIZE": 306,
    "INFRA_ENVIRONMENT": 406,
    "DATA_INPUT_MISSING": 500,
    "DATA_STAGE_IN": 501,
    "DATA_STAGE_OUT": 502,
    "DATA_CHECKSUM": 503,
    "DATA_SPACE": 505,
    "USER_CANCELLED": 600,
}
MIB = 1 << 20
DEFAULT_LOG_BYTES = 100 * MIB
SANDBOX_FILE_BYTES = 10 * MIB
HEARTBEAT_SECONDS = 10.0
POST_SECONDS = 300.0
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
OUT_OF_MEMORY = re.compile(rb"MemoryError|std::bad_alloc|[Cc]annot allocate memory|OutOfMemoryError|[Oo]ut of memory")

Record = Dict[str, Any]


class Failure(Exception):
    """The job ends here, for a reason of the catalogue of reasons; `final` = trying again is of no use."""

    def __init__(self, reason: str, message: str, final: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.final = final


class Cancelled(Exception):
    """The wrapper was asked to end."""


# ---------------------------------------------------------------------------------------------- records


def now() -> str:
    moment = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + ".%06dZ" % (moment % 1 * 1e6)


def write_json(path: str, value: Any) -> None:
    """Write so that a reader finds the whole file or none."""
    with open(path + ".tmp", "w") as stream:
        stream.write(json.dumps(value, sort_keys=True) + "\n")
    os.rename(path + ".tmp", path)


def read_json(path: str) -> Any:
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def process_state(pid: int) -> Tuple[bytes, int]:
    """State of a process, and its start in clock ticks since boot, which with the pid names it for ever."""
    with open("/proc/%d/stat" % pid, "rb") as stream:
        fields = stream.read().rpartition(b")")[2].split()
    return fields[0], int(fields[19])


def lives(owner: Record) -> bool:
    """Whether the process that claimed a job folder is still there."""
    if owner.get("boot") != boot_id():
        return False
    try:
        state, ticks = process_state(owner["pid"])
        return state not in (b"Z", b"X") and bool(ticks == owner["ticks"])
    except (OSError, KeyError, TypeError):
        return False


@functools.lru_cache(maxsize=None)
def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as stream:
        return stream.read().strip()


def lay_out(spool: str, batch: str, index: int) -> Optional[str]:
    """Make the job folder of one element of a submission; None when the job goes with that no more."""
    folder = os.path.join(spool, "batches", batch)
    try:
        with open(os.path.join(folder, "offsets")) as offsets:
            offsets.seek(16 * index)
            start = int(offsets.read(16))
        with open(os.path.join(folder, "manifests"), "rb") as manifests:
            manifests.seek(start)
            manifest = manifests.readline()
        token = json.loads(manifest.decode())["token"]
        with open(os.path.join(spool, "places", token)) as place:
            if place.read() != batch:
                return None
    except FileNotFoundError:
        return None  # purged
    jobdir = os.path.join(spool, "jobs", token)
    os.makedirs(jobdir, mode=0o700, exist_ok=True)
    hidden = os.path.join(jobdir, "job.json.%s.%d" % (HOST, os.getpid()))
    with open(hidden, "wb") as stream:
        stream.write(manifest)
    os.rename(hidden, os.path.join(jobdir, "job.json"))
    return jobdir


def claim(jobdir: str) -> bool:
    """Take the job folder; False when somebody had it before."""
    try:
        handle = os.open(os.path.join(jobdir, "started"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    os.write(handle, json.dumps(dict(identity(os.getpid()), host=HOST, time=now())).encode())
    os.close(handle)
    return True


@functools.lru_cache(maxsize=None)
def identity(pid: int) -> Record:
    """What tells this process from every other one, also after its end."""
    return {"pid": pid, "ticks": process_state(pid)[1], "boot": boot_id()}


# Slurm may call a node otherwise than its kernel does.
HOST = os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def exit_record(manifest: Record, state: str, reason: str, message: str) -> Record:
    return {
        "format": FORMAT,
        "wrapper": VERSION,
        "host": HOST,
        "token": manifest.get("token", ""),
        "job": manifest.get("job", ""),
        "attempt": manifest.get("attempt", 0),
        "state": state,
        "reason": REASONS[reason],
        "reason_name": reason,
        "message": message,
        "end_time": now(),
    }


# -------------------------------------------------------------------------------------------- processes


class Signals:
    """Signals to the wrapper: a byte in a pipe wakes the supervisor; SIGTERM and SIGINT mean cancel.

    A process that runs one job after the other gets signals that were meant for the one before; then a signal only
    counts when the file `confirm` is there.
    """

    def __init__(self, confirm: Optional[str] = None) -> None:
        self.confirm = confirm
        self.asked = False  # to end
        self.deferred = False  # True: the supervisor looks at `asked` itself
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self.writer, False)
        signal.set_wakeup_fd(self.writer)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        # SIGUSR2 is how Grid Engine says that SIGKILL follows, SIGUSR1 that it will suspend the job.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, self.cancel)
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])

    def begin(self, folder: str) -> None:
        """A new job."""
        self.asked = self.deferred = False
        if self.confirm is not None:
            self.confirm = os.path.join(folder, "cancel")
            self.deferred = self.asked = os.path.exists(self.confirm)
            if self.asked:
                raise Cancelled

    def cancel(self, number: int, frame: Any) -> None:
        if self.confirm is not None and not os.path.exists(self.confirm):
            return
        again, self.asked = self.asked, True
        if not self.deferred and not again:
            raise Cancelled

    def wait(self, seconds: float) -> None:
        select.select([self.reader], [], [], max(0.0, seconds))
        with contextlib.suppress(BlockingIOError):
            os.read(self.reader, 512)


def become_subreaper() -> None:
    """Let orphans of the payload become children of this process, so that none of them can get away."""
    try:
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    except (ImportError, OSError, AttributeError):
        pass  # the process group is still ended


def children(pid: int) -> List[int]:
    found = []  # type: List[int]
    for thread in os.listdir("/proc/%d/task" % pid):
        # A thread that ended meanwhile hides not what the others started.
        with contextlib.suppress(OSError), open("/proc/%d/task/%s/children" % (pid, thread), "rb") as stream:
            found += map(int, stream.read().split())
    return found


def descendants() -> List[int]:
    """All processes below this one."""
    found, todo = [], [os.getpid()]  # type: List[int], List[int]
    while todo:
        try:
            below = children(todo.pop())
        except OSError:
            continue  # it ended meanwhile
        found += below
        todo += below
    return found


def signal_tree(number: int) -> int:
    pids = descendants()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return len(pids)


def end_stragglers(seconds: float = 10.0) -> int:
    """Kill what the payload left behind; return how many processes there were."""
    found, deadline = 0, time.monotonic() + seconds
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return found
        found = max(found, signal_tree(signal.SIGKILL))
        if time.monotonic() > deadline:
            raise Failure("INFRA_ENVIRONMENT", "%d processes of the job cannot be killed" % found)
        time.sleep(0.005)


def memory_of(pids: List[int], limit: Optional[int]) -> int:
    """Memory of these processes: what is resident, or when that is over the limit what is their own.

    Pages that processes share and pages of mapped files count in full as resident, which would end innocent jobs.
    """
    total = 0
    for pid in pids:
        try:
            with open("/proc/%d/statm" % pid, "rb") as stream:
                total += int(stream.read().split()[1]) * PAGE
        except (OSError, IndexError):
            continue
    if limit is None or total <= limit:
        return total
    own = 0
    for pid in pids:
        try:
            with open("/proc/%d/smaps_rollup" % pid, "rb") as stream:
                sizes = dict(line.split(b":", 1) for line in stream if b": " in line)
        except OSError:
            if os.path.exists("/proc/%d/statm" % pid) and not os.path.exists("/proc/%d/smaps_rollup" % pid):
                return total  # an old kernel
            continue
        parts = [sizes[key] for key in (b"Pss_Anon", b"Pss_Shmem") if key in sizes] or [sizes[b"Pss"]]
        own += sum(int(part.split()[0]) * 1024 for part in parts)
    return own


def cpu_of(pids: List[int]) -> float:
    """CPU seconds of these processes and of all that they or this process have waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = used.ru_utime + used.ru_stime
    for pid in pids:
        try:
            with open("/proc/%d/stat" % pid, "rb") as stream:
                fields = stream.read().rpartition(b")")[2].split()
        except OSError:
            continue
        total += sum(int(field) for field in fields[11:15]) / TICKS
    return total


def disk_of(folders: List[str]) -> int:
    total, todo = 0, list(folders)
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
        except OSError:
            continue  # removed meanwhile
    return total


def io_bytes() -> Tuple[int, int]:
    """Bytes read and written by this process and all children that it has waited for."""
    try:
        with open("/proc/self/io", "rb") as stream:
            counts = dict(line.split(b": ") for line in stream)
        return int(counts[b"read_bytes"]), int(counts[b"write_bytes"])
    except (OSError, KeyError):
        return 0, 0


class Monitor:
    """Samples what the job uses and says when a limit is passed."""

    def __init__(self, job: "Job") -> None:
        self.job = job
        self.limits = job.manifest.get("resources", {})
        self.log_bytes = job.manifest.get("log_bytes") or DEFAULT_LOG_BYTES
        self.memory = 0
        self.peak = 0  # of one process, from the kernel
        self.disk = 0
        self.cpu = 0.0
        self.cpu_before = cpu_of([])
        self.disk_due = 0.0

    def interval(self, elapsed: float) -> float:
        return min(0.2, max(0.02, elapsed / 10))

    def sample(self) -> Optional[Failure]:
        """Look once. What grows without a pause is met in the first tenths of a second or not at all."""
        pids = descendants()
        limit = self.limits.get("memory_bytes") or None
        memory = memory_of(pids, limit)
        self.memory = max(self.memory, memory)
        if limit and memory > limit:
            return Failure("LIMIT_MEMORY", "used %d bytes of memory, %d are allowed" % (memory, limit))
        self.cpu = cpu_of(pids) - self.cpu_before
        limit = self.limits.get("cpu_time_s")
        if limit and self.cpu > limit:
            return Failure("LIMIT_CPU", "used %.1f s of CPU time, %g s are allowed" % (self.cpu, limit))
        return self.sample_files()

    def sample_files(self) -> Optional[Failure]:
        for name in ("stdout", "stderr"):
            size = os.stat(os.path.join(self.job.folder, name)).st_size
            if size > self.log_bytes:
                message = "printed more than the %d bytes allowed to %s" % (self.log_bytes, name)
                return Failure("LIMIT_LOG_SIZE", message)
        limit = self.limits.get("disk_bytes")
        started = time.monotonic()
        if limit and started >= self.disk_due:
            self.sample_disk()
            self.disk_due = time.monotonic() + max(0.1, 10 * (time.monotonic() - started))
            if self.disk > limit:
                return Failure("LIMIT_DISK", "used %d bytes of disk, %d are allowed" % (self.disk, limit))
        return None

    def sample_disk(self) -> None:
        self.disk = max(self.disk, disk_of([self.job.work, self.job.tmp]))


class Ended:
    """How a process ended: by an exit code or by a signal, and whether we ended it."""

    def __init__(self, status: int, verdict: Optional[Exception], seconds: float) -> None:
        self.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        self.code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        self.verdict = verdict
        self.seconds = seconds


class Supervisor:
    """Watches one running command, and ends it when a limit is passed or somebody cancels."""

    def __init__(self, job: "Job", wall: Optional[float]) -> None:
        self.job = job
        self.wall = wall
        self.started = time.monotonic()
        self.verdict = None  # type: Optional[Exception]
        self.kill_at = float("inf")
        self.sample_at = self.started + job.monitor.interval(0)
        self.heartbeat = float(job.manifest.get("heartbeat_s", HEARTBEAT_SECONDS))
        self.beat_at = self.started + self.heartbeat / 2

    def look(self, moment: float) -> None:
        """One round: judge, act, note when to look again."""
        if self.verdict is None:
            self.verdict = self.judge(moment)
            if isinstance(self.verdict, Failure) and self.verdict.reason in GROWING:
                self.kill_at = moment
            elif self.verdict is not None:
                signal_tree(signal.SIGTERM)
                self.kill_at = moment + self.job.kill_grace()
        if moment >= self.kill_at:
            signal_tree(signal.SIGKILL)
        if moment >= self.sample_at:
            self.sample_at = moment + self.job.monitor.interval(moment - self.started)
        if moment >= self.beat_at:
            self.job.beat()
            self.beat_at = moment + self.heartbeat

    def judge(self, moment: float) -> Optional[Exception]:
        if self.job.signals.asked:
            return Cancelled()
        if self.wall and moment - self.started >= self.wall:
            return Failure("LIMIT_WALL", "ran %.1f s, %g s are allowed" % (moment - self.started, self.wall))
        return self.job.monitor.sample() if moment >= self.sample_at else None

    def pause(self, moment: float) -> float:
        """Seconds until the next look; a signal ends the pause earlier."""
        deadline = self.started + self.wall if self.wall and self.verdict is None else float("inf")
        return min(self.sample_at, self.beat_at, deadline, max(self.kill_at, moment + 0.01)) - moment


# A pause between SIGTERM and SIGKILL would let these grow further.
GROWING = ("LIMIT_MEMORY", "LIMIT_DISK", "LIMIT_LOG_SIZE")


def supervise(job: "Job", command: List[str], env: Dict[str, str], wall: Optional[float]) -> Ended:
    """Run a command in the work directory to its end."""
    job.signals.deferred = True  # the supervisor looks at them
    try:
        process = job.spawn(command, env)
        supervisor = Supervisor(job, wall)
        while True:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid:
                job.monitor.peak = max(job.monitor.peak, usage.ru_maxrss * 1024)
            if pid == process.pid:
                process.returncode = 0  # nobody else waits for it
                return Ended(status, supervisor.verdict, time.monotonic() - supervisor.started)
            if pid:
                continue  # an orphan that became ours
            moment = time.monotonic()
            supervisor.look(moment)
            job.signals.wait(supervisor.pause(moment))
    finally:
        job.signals.deferred = False


# ----------------------------------------------------------------------------------------------- inputs


def opener() -> Any:
    """An HTTP opener that does not carry our headers on to another host."""
    from urllib.parse import urlsplit
    from urllib.request import HTTPRedirectHandler, build_opener

    class Redirect(HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            target = super().redirect_request(req, fp, code, msg, headers, newurl)
            if target is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
                target.headers = {}
            return target

    return build_opener(Redirect)


def local_path(url: str) -> str:
    from urllib.parse import unquote

    return unquote(url[len("file://") :])


def open_source(source: Record) -> Any:
    from urllib.request import Request

    url = source["url"]
    if url.startswith("file://"):
        return open(local_path(url), "rb")
    if not url.startswith(("http://", "https://")):
        raise Failure("DATA_STAGE_IN", "cannot read from %s: only http, https and file" % url.split("?")[0])
    return opener().open(Request(url, headers=source.get("headers", {})), timeout=60)  # noqa: S310  checked above


def copy_checked(reader: BinaryIO, target: str, entry: Record) -> None:
    """Copy, and compare size and checksum with what the catalogue says."""
    adler, size = 1, 0
    with open(target, "wb") as writer:
        for piece in iter(lambda: reader.read(MIB), b""):
            writer.write(piece)
            adler, size = zlib.adler32(piece, adler), size + len(piece)
    if entry.get("size_bytes") is not None and size != entry["size_bytes"]:
        message = "%s has %d bytes, the catalogue says %d" % (entry["path"], size, entry["size_bytes"])
        raise Failure("DATA_CHECKSUM", message)
    if entry.get("adler32") and "%08x" % adler != entry["adler32"]:
        message = "%s has adler32 %08x, the catalogue says %s" % (entry["path"], adler, entry["adler32"])
        raise Failure("DATA_CHECKSUM", message)


def network_failure(error: Exception, reason: str, what: str) -> Failure:
    """Say in our words what went wrong on the way."""
    code = getattr(error, "code", None)
    if code == 507 or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return Failure("DATA_SPACE", "no space left: %s: %s" % (what, error), final=True)
    if isinstance(error, FileNotFoundError) or (code in (404, 410) and reason == "DATA_STAGE_IN"):
        return Failure("DATA_INPUT_MISSING", "%s does not exist" % what, final=True)
    final = isinstance(code, int) and 400 <= code < 500 and code not in (408, 425, 429)
    return Failure(reason, "%s: %s" % (what, error), final)


def fetch(entry: Record, target: str, attempts: int, pause: float) -> None:
    """Try each source in turn, then all again after a pause."""
    failure = Failure("DATA_INPUT_MISSING", "%s has no source" % entry["path"])
    sources = list(entry.get("sources", []))
    for attempt in range(attempts):
        for source in list(sources):
            try:
                if source.get("link") and source["url"].startswith("file://"):
                    os.stat(local_path(source["url"]))
                    return os.symlink(local_path(source["url"]), target)
                with open_source(source) as reader:
                    return copy_checked(reader, target, entry)
            except Failure as error:
                failure = error
            except (OSError, ValueError) as error:
                failure = network_failure(error, "DATA_STAGE_IN", "%s from %s" % (entry["path"], host_of(source)))
                if failure.final:
                    sources.remove(source)
        if not sources:
            break
        if attempt + 1 < attempts:
            time.sleep(pause * 2**attempt)
    raise failure


def host_of(source: Record) -> str:
    """The address without its query, which may hold a secret."""
    return str(source["url"]).split("?")[0]


def inside(root: str, path: str) -> str:
    """The path below root; refuses what leads out of it."""
    full = os.path.normpath(os.path.join(root, path))
    if not full.startswith(root + os.sep):
        raise Failure("INFRA_ENVIRONMENT", "the path %r leads out of the work directory" % path)
    return full


def stage_in(job: "Job") -> None:
    transfer = job.manifest.get("transfer", {})
    for entry in job.manifest.get("inputs", []):
        target = inside(job.work, entry["path"])
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if "content" in entry:
            with open(target, "wb") as stream:
                stream.write(base64.b64decode(entry["content"]))
        else:
            fetch(entry, target, transfer.get("attempts", 4), transfer.get("pause_s", 1.0))
        if entry.get("executable"):
            os.chmod(target, 0o755)  # noqa: S103  what the job asked for


# ------------------------------------------------------------------------------------------------- FITS

BLOCK = 2880
ONES = 0xFFFFFFFF


class BadFits(Exception):
    """Not a complete FITS file."""


def card_value(card: bytes) -> Any:
    """Value of an 80 byte card: text, number, truth value, or None when undefined."""
    text = card[10:].decode("ascii", "replace").strip()
    if text.startswith("'"):
        match = re.match(r"'((?:[^']|'')*)'", text)
        return match.group(1).replace("''", "'").rstrip() if match else ""
    text = text.split("/")[0].strip()
    if text in ("T", "F"):
        return text == "T"
    for kind in (int, float):
        try:
            return kind(text.replace("D", "E"))
        except ValueError:
            continue
    return None


def read_header(stream: Any) -> Optional[Dict[str, Any]]:
    """Cards of the next header (the first of each name), or None at the end of the file."""
    header = {}  # type: Dict[str, Any]
    while True:
        block = stream.read(BLOCK)
        if not header and block[:8] not in (b"SIMPLE  ", b"XTENSION"):
            return None  # the end, or special records that the standard allows after the last HDU
        if len(block) < BLOCK:
            raise BadFits("ends within a header")
        for start in range(0, BLOCK, 80):
            card = block[start : start + 80]
            name = card[:8].decode("ascii", "replace").rstrip()
            if name == "END":
                return header
            if card[8:10] == b"= ":
                header.setdefault(name, card_value(card))


def data_size(header: Dict[str, Any]) -> int:
    try:
        sizes = [int(header["NAXIS%d" % (axis + 1)]) for axis in range(int(header["NAXIS"]))]
        width = abs(int(header["BITPIX"])) // 8
    except (KeyError, TypeError, ValueError):
        raise BadFits("has a header without BITPIX, NAXIS or NAXISn") from None
    if header.get("GROUPS") is True and sizes and sizes[0] == 0:
        sizes = sizes[1:]
    product = 1 if sizes else 0
    for size in sizes:
        product *= size
    return width * (header.get("GCOUNT") or 1) * ((header.get("PCOUNT") or 0) + product)


def datasum(stream: Any, size: int) -> int:
    """Ones' complement sum of the 32 bit words of the data records: the number modulo 2**32 - 1."""
    total, any_bit, left = 0, False, (size + BLOCK - 1) // BLOCK * BLOCK
    while left:
        piece = stream.read(min(left, 64 * BLOCK))
        if not piece or len(piece) % 4:
            raise BadFits("ends %d bytes before the end of its data" % (left - len(piece)))
        number = int.from_bytes(piece, "big")
        any_bit = any_bit or number != 0
        total = (total + number) % ONES
        left -= len(piece)
    return total or (ONES if any_bit else 0)


def fits_hdus(path: str) -> Iterator[Tuple[str, Dict[str, Any], int]]:
    """Name, header and DATASUM of every HDU, reading the whole file, also inside gzip."""
    import gzip

    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if packed else raw  # type: Any
        try:
            index = 0
            while True:
                header = read_header(stream)
                if header is None:
                    break
                name = str(header.get("EXTNAME") or "").upper() or ("PRIMARY" if index == 0 else str(index))
                yield name, header, datasum(stream, data_size(header))
                index += 1
            while stream.read(MIB):
                pass  # to the end of the gzip stream, whose own checksum is verified there
        except (EOFError, OSError, zlib.error) as error:
            raise BadFits("cannot be read: %s" % error) from error
    if index == 0:
        raise BadFits("does not begin with a FITS header")


def check_fits(path: str, contract: Record, cards: List[str]) -> Record:
    """Content digest, HDUs and wanted cards of a FITS file that keeps its contract."""
    import hashlib

    digest, hdus, found = hashlib.sha256(), [], {}  # type: Any, List[Record], Record
    for name, header, total in fits_hdus(path):
        digest.update(("%s:%d\n" % (name, total)).encode())
        rows = header.get("NAXIS2") if header.get("XTENSION") in ("BINTABLE", "TABLE") else None
        hdus.append({"name": name, "datasum": total, "rows": rows})
        for card in cards:
            if card in header and header[card] is not None:
                found.setdefault(card, header[card])
    rows_of = {hdu["name"]: hdu["rows"] for hdu in reversed(hdus)}
    wanted, tables = contract.get("hdus", []), contract.get("tables", [])
    missing = [name for name in list(wanted) + list(tables) if name.upper() not in rows_of]
    if missing:
        raise BadFits("has no HDU %s, only %s" % (", ".join(missing), ", ".join(rows_of)))
    empty = [name for name in tables if not rows_of[name.upper()]]
    if empty:
        raise BadFits("has no rows in %s" % ", ".join(empty))
    return {"content_digest": digest.hexdigest(), "hdus": hdus, "header": found}


# ---------------------------------------------------------------------------------------------- outputs


def matches(job: "Job", pattern: str, taken: List[str]) -> List[str]:
    """Files of the payload that match, without inputs and without those that an earlier output took."""
    if os.path.isabs(pattern) or ".." in pattern.split("/"):
        raise Failure("APP_CHECK_FAILED", "the output pattern %r leads out of the work directory" % pattern)
    import glob

    paths = sorted(glob.glob(os.path.join(glob.escape(job.work), pattern), recursive=True))
    names = [os.path.relpath(path, job.work) for path in paths if os.path.isfile(path)]
    inputs = {os.path.normpath(entry["path"]) for entry in job.manifest.get("inputs", [])}
    return [name for name in names if name not in inputs and name not in taken]


def checksums(path: str) -> Record:
    import hashlib

    adler, sha, size = 1, hashlib.sha256(), 0
    with open(path, "rb") as stream:
        for piece in iter(lambda: stream.read(MIB), b""):
            adler, size = zlib.adler32(piece, adler), size + len(piece)
            sha.update(piece)
    return {"size_bytes": size, "adler32": "%08x" % adler, "sha256": sha.hexdigest()}


def describe(job: "Job", number: int, output: Record, name: str) -> Record:
    """Check one file against its contract and describe it."""
    path = os.path.join(job.work, name)
    if not os.path.realpath(path).startswith(os.path.realpath(job.work) + os.sep):
        raise Failure("APP_CHECK_FAILED", "%s is a link that leads out of the work directory" % name)
    size, least, most = os.stat(path).st_size, output.get("min_bytes") or 1, output.get("max_bytes")
    if size < least:
        what = "is empty" if size == 0 else "has %d bytes, at least %d are wanted" % (size, least)
        raise Failure("APP_OUTPUT_MISSING" if size == 0 else "APP_CHECK_FAILED", "%s %s" % (name, what))
    if output.get("sandbox"):
        most = min(most or SANDBOX_FILE_BYTES, SANDBOX_FILE_BYTES)
    if most and size > most:
        raise Failure("APP_CHECK_FAILED", "%s has %d bytes, at most %d are allowed" % (name, size, most))
    if not plain(name):
        raise Failure("APP_CHECK_FAILED", "the name of the output %r is no UTF-8: call it otherwise" % name)
    record = {"output": number, "path": name, "sandbox": bool(output.get("sandbox"))}
    record.update(checksums(path))
    is_fits = re.search(r"\.(fits?|fts)(\.gz)?$", name, re.I)
    if output.get("fits") is not None or output.get("header_cards") or is_fits:
        try:
            record.update(check_fits(path, output.get("fits") or {}, output.get("header_cards", [])))
        except BadFits as error:
            raise Failure("APP_CHECK_FAILED", "%s is not as promised: it %s" % (name, error)) from error
    return record


def plain(name: str) -> bool:
    """Whether a name is text: others can be neither catalogued nor kept."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def collect(job: "Job", succeeded: bool) -> List[Record]:
    """Check all contracts, then put the files where they can be fetched. After a failure only into the sandbox."""
    found = []  # type: List[Record]
    for number, output in enumerate(job.manifest.get("outputs", [])):
        when = output.get("when") or "ON_SUCCESS"
        if when == ("ON_FAILURE" if succeeded else "ON_SUCCESS"):
            continue
        names = matches(job, output["glob"], [record["path"] for record in found])
        if succeeded:
            least, most = output.get("min_files") or 1, output.get("max_files") or 1000
            if len(names) < least:
                message = "%d files match %r, at least %d are wanted" % (len(names), output["glob"], least)
                raise Failure("APP_OUTPUT_MISSING", message)
            if len(names) > most:
                message = "%d files match %r, at most %d are allowed" % (len(names), output["glob"], most)
                raise Failure("APP_CHECK_FAILED", message)
            found += [describe(job, number, output, name) for name in names]
        else:
            for name in filter(plain, names):
                path = os.path.join(job.work, name)
                if not os.path.islink(path) and os.path.getsize(path) <= SANDBOX_FILE_BYTES:
                    found.append(dict(checksums(path), output=number, path=name, sandbox=True))
    return found


def stage_out(job: "Job", found: List[Record]) -> None:
    """Upload the files, or keep them in the job folder; sandbox files always stay there."""
    upload, index = job.manifest.get("upload"), 0
    for record in found:
        path = os.path.join(job.work, record["path"])
        if record["sandbox"]:
            record["location"] = "sandbox/" + record["path"]
        else:
            record["index"], index = index, index + 1
            record["location"] = "upload" if upload else "outputs/%d" % record["index"]
    if found:
        write_json(os.path.join(job.folder, "outputs.json"), found)
    for record in found:
        path = os.path.join(job.work, record["path"])
        if record["location"] == "upload":
            put(job, path, record, upload or {})
        else:
            target = os.path.join(job.folder, record["location"])
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if os.path.islink(path):
                import shutil

                shutil.copyfile(path, target)
            else:
                os.rename(path, target)


def put(job: "Job", path: str, record: Record, upload: Record) -> None:
    """PUT one file to `url_prefix` + index. The answer's Digest header, when there is one, must agree."""
    from urllib.request import Request

    transfer, digest = job.manifest.get("transfer", {}), "adler32=" + record["adler32"]
    headers = {"Content-Length": str(record["size_bytes"]), "Content-Type": "application/octet-stream"}
    headers["Digest"] = digest
    headers.update(upload.get("headers", {}))
    url = "%s%d" % (upload["url_prefix"], record["index"])
    failure = Failure("DATA_STAGE_OUT", "%s was not sent" % record["path"])
    attempts = transfer.get("attempts", 4)
    for attempt in range(attempts):
        try:
            with open(path, "rb") as body:
                request = Request(url, data=body, headers=headers, method="PUT")  # noqa: S310  the storage said so
                with opener().open(request, timeout=60) as answer:
                    received = answer.headers.get("Digest") or digest
            if received.lower() == digest:
                return
            failure = Failure("DATA_CHECKSUM", "%s arrived as %s, sent %s" % (record["path"], received, digest))
        except (OSError, ValueError) as error:
            failure = network_failure(error, "DATA_STAGE_OUT", "%s to %s" % (record["path"], host_of({"url": url})))
            if failure.final:
                break
        if attempt + 1 < attempts:
            time.sleep(transfer.get("pause_s", 1.0) * 2**attempt)
    raise failure


# -------------------------------------------------------------------------------------------------- run


class Job:
    """One job in its folder."""

    def __init__(self, folder: str, manifest: Record, signals: Signals) -> None:
        self.folder = folder
        self.manifest = manifest
        self.signals = signals
        self.work = os.path.join(folder, "work")
        self.tmp = os.path.join(folder, "tmp")
        self.monitor = Monitor(self)
        self.record = {"start_time": now()}  # type: Record
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.logs = [os.open(os.path.join(folder, name), flags, 0o600) for name in ("stdout", "stderr")]
        os.mkdir(self.work)
        os.mkdir(self.tmp)

    def environment(self) -> Dict[str, str]:
        """What the payload sees: a clean start, what the job declares, and what it is."""
        declared = self.manifest
        if declared.get("inherit_env"):
            env = dict(os.environ)
        else:
            user = user_name()
            env = {"PATH": declared.get("path") or "/usr/local/bin:/usr/bin:/bin", "SHELL": "/bin/sh"}
            env.update(LANG="C.UTF-8", USER=user, LOGNAME=user, HOME=self.tmp)
        cpus = -(-int(declared.get("resources", {}).get("cpu_milli") or 1000) // 1000)
        env.update(TMPDIR=self.tmp, OMP_NUM_THREADS=str(cpus))  # or every library starts a thread a core
        env.update(declared.get("env", {}))
        env.update(
            KHOMAS_JOB=str(declared.get("job", "")),
            KHOMAS_ATTEMPT=str(declared.get("attempt", 0)),
            KHOMAS_ORIGIN=str(declared.get("origin", "")),
            KHOMAS_CPUS=str(cpus),
            KHOMAS_PROGRESS=os.path.join(self.folder, "progress"),
            KHOMAS_EVENTS=os.path.join(self.folder, "events"),
        )
        if declared.get("traceparent"):
            env["TRACEPARENT"] = declared["traceparent"]
        return env

    def spawn(self, command: List[str], env: Dict[str, str]) -> Any:
        stdin = self.manifest.get("stdin")
        with open(inside(self.work, stdin) if stdin else os.devnull, "rb") as source:
            try:
                return subprocess.Popen(
                    command,
                    cwd=self.work,
                    env=env,
                    stdin=source,
                    stdout=self.logs[0],
                    stderr=self.logs[1],
                    start_new_session=True,
                )
            except OSError as error:
                what = {errno.ENOENT: "was not found", errno.EACCES: "may not be executed"}
                reason = what.get(error.errno or 0, "cannot be executed: %s" % error)
                raise Failure("APP_NOT_FOUND", "%s %s on %s" % (command[0], reason, HOST)) from error

    def kill_grace(self) -> float:
        """Pause between SIGTERM and SIGKILL; who cancels may have left another one."""
        try:
            return float(read_json(os.path.join(self.folder, "cancel"))["grace_s"])
        except (OSError, ValueError, KeyError):
            return float(self.manifest.get("kill_grace_s", 10.0))

    def beat(self) -> None:
        self.monitor.sample_disk()
        seen = {"time": now(), "cpu_s": self.monitor.cpu, "memory_bytes": self.monitor.memory}
        seen.update(disk_bytes=self.monitor.disk, application_status=self.reported("progress"))
        write_json(os.path.join(self.folder, "heartbeat"), seen)

    def reported(self, name: str) -> str:
        """Last line of a file that the payload writes to report something."""
        try:
            with open(os.path.join(self.folder, name), "rb") as stream:
                lines = stream.read(64 * 1024).decode("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1][:256] if lines else ""

    def prepared(self, env: Dict[str, str], wall: Optional[float]) -> Dict[str, str]:
        """Run `pre_command` and take over the environment that it leaves: `module load root`."""
        pre = self.manifest.get("pre_command")
        if not pre:
            return env
        left = os.path.join(self.folder, "environment")
        script = '%s\nkhomas_status=$?; env -0 > "$0"; exit $khomas_status' % pre
        ended = supervise(self, ["/bin/sh", "-c", script, left], env, wall)
        if ended.verdict is not None:
            raise ended.verdict
        if ended.code != 0:
            raise Failure("INFRA_ENVIRONMENT", "pre_command ended with " + ending(ended))
        with open(left, "rb") as stream:
            entries = [os.fsdecode(entry).partition("=") for entry in stream.read().split(b"\0") if entry]
        os.unlink(left)
        return {name: value for name, _, value in entries}

    def execute(self) -> None:
        """Stage in, run, and judge what came out; raises Failure or Cancelled."""
        stage_in(self)
        limits = self.manifest.get("resources", {})
        memory, wall = limits.get("memory_bytes"), limits.get("wall_time_s")
        # A backstop for one huge allocation; more than the limit, since not all that is mapped gets used.
        soft_limit(resource.RLIMIT_DATA, int(memory) + max(int(memory) // 4, 1024 * MIB) if memory else None)
        soft_limit(resource.RLIMIT_CORE, 0)
        started, before, io_before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN), io_bytes()
        self.record["payload_start_time"] = now()
        env = self.environment()
        code = "1"
        try:
            env = self.prepared(env, wall)
            left = max(0.1, wall - (time.monotonic() - started)) if wall else None
            ended = supervise(self, self.manifest["command"], env, left)
            self.record.update(exit_code=ended.code, signal=ended.signal)
            code = str(ended.code if ended.code is not None else 128 + (ended.signal or 0))
            self.judge(ended)
        finally:
            self.record["payload_end_time"] = now()
            self.record["stragglers"] = end_stragglers()
            self.use(time.monotonic() - started, before, io_before)
            if self.manifest.get("post_command"):
                self.after(dict(env, EXIT_CODE=code))

    def judge(self, ended: Ended) -> None:
        """Say why the payload failed, the first cause first."""
        limits = self.manifest.get("resources", {})
        if ended.verdict is not None:
            raise ended.verdict
        memory = limits.get("memory_bytes")
        peak = self.monitor.peak
        if memory and peak > max(memory, 64 * MIB) and ended.seconds < 1:
            # Too fast for the samples. (64 MiB: the kernel's peak begins with that of this wrapper.)
            raise Failure("LIMIT_MEMORY", "used %d bytes of memory, %d are allowed" % (peak, memory))
        self.monitor.disk_due = 0
        failure = self.monitor.sample_files()
        if failure is not None:
            raise failure
        if ended.signal is None and ended.code in (self.manifest.get("success_exit_codes") or [0]):
            return
        if memory and OUT_OF_MEMORY.search(self.tail("stderr")):
            raise Failure("LIMIT_MEMORY", "was refused memory: %d bytes are allowed" % memory)
        if ended.signal is not None:
            hint = ", not sent by Khomas: the system or the batch system did" if ended.signal == 9 else ""
            raise Failure("APP_SIGNAL", "the payload was ended by %s%s" % (ending(ended), hint))
        raise Failure("APP_EXIT_CODE", "the payload ended with " + ending(ended))

    def after(self, env: Dict[str, str]) -> None:
        """Run `post_command`; its failure fails a job that had succeeded until then."""
        already = sys.exc_info()[0] is not None
        self.signals.asked = False  # only a second cancel ends this one too
        ended = supervise(self, ["/bin/sh", "-c", self.manifest["post_command"]], env, POST_SECONDS)
        end_stragglers()
        if already:
            return
        if isinstance(ended.verdict, Cancelled):
            raise ended.verdict
        if ended.code != 0:
            raise Failure("APP_CHECK_FAILED", "post_command ended with " + ending(ended))

    def use(self, wall: float, before: Any, io_before: Tuple[int, int]) -> None:
        used, io_after = resource.getrusage(resource.RUSAGE_CHILDREN), io_bytes()
        if "disk_bytes" in self.manifest.get("resources", {}) or self.manifest.get("outputs"):
            self.monitor.sample_disk()
        events = self.reported("events")
        self.record["usage"] = {
            "wall_s": round(wall, 6),
            "cpu_user_s": round(used.ru_utime - before.ru_utime, 6),
            "cpu_system_s": round(used.ru_stime - before.ru_stime, 6),
            "max_memory_bytes": max(self.monitor.memory, self.monitor.peak),
            "max_disk_bytes": self.monitor.disk,
            "read_bytes": io_after[0] - io_before[0],
            "write_bytes": io_after[1] - io_before[1],
            "events": int(events) if re.match(r"\d{1,18}$", events) else 0,
        }

    def tail(self, name: str) -> bytes:
        with open(os.path.join(self.folder, name), "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 16384))
            return stream.read()

    def clean(self) -> None:
        """Leave logs of the allowed size and nothing in the work directory.

        Empty folders stay: ext4 gets slow where thousands of inodes were freed in the last seconds.
        """
        for handle in self.logs:
            size = os.fstat(handle).st_size
            if size > self.monitor.log_bytes:
                os.ftruncate(handle, self.monitor.log_bytes)
                os.write(handle, b"\n[khomas: cut after %d of %d bytes]\n" % (self.monitor.log_bytes, size))
            os.close(handle)
        if not self.manifest.get("keep_workdir"):
            for folder in (self.work, self.tmp):
                for entry in list(os.scandir(folder)):
                    if entry.is_dir(follow_symlinks=False):
                        import shutil

                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        os.unlink(entry.path)


def soft_limit(which: int, value: Optional[int]) -> None:
    """Set a limit that children inherit; None = as high as allowed."""
    hard = resource.getrlimit(which)[1]
    if value is None or (hard != resource.RLIM_INFINITY and value > hard):
        value = hard
    resource.setrlimit(which, (value, hard))


@functools.lru_cache(maxsize=None)
def user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def ending(ended: Ended) -> str:
    if ended.signal is None:
        return "exit code %s" % ended.code
    try:
        return signal.Signals(ended.signal).name
    except ValueError:
        return "signal %d" % ended.signal


def verdict_of(error: Optional[BaseException]) -> Tuple[str, str, str]:
    """State, reason and sentence of what ended the job."""
    if error is None:
        return "SUCCEEDED", "NONE", ""
    if isinstance(error, Cancelled):
        return "CANCELLED", "USER_CANCELLED", "cancelled while it ran"
    if isinstance(error, Failure):
        return "FAILED", error.reason, error.message
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "FAILED", "DATA_SPACE", "no space left on %s: %s" % (HOST, error)
    import traceback

    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return "FAILED", "INFRA_ENVIRONMENT", "the wrapper failed: " + "".join(lines)[-2000:]


def work_through(job: Job) -> Optional[BaseException]:
    """Run and bring out; on a failure bring out what helps to find its cause."""
    try:
        job.execute()
        found = collect(job, True)
        stage_out(job, found)
        job.record["outputs"] = found
        return None
    except Exception as error:
        cause = error
    try:
        end_stragglers()
        found = collect(job, False)
        stage_out(job, found)
        job.record["outputs"] = found
    except Exception:
        job.record["outputs"] = []
    return cause


def run(folder: str, signals: Optional[Signals] = None) -> Optional[Record]:
    """Run the job of this folder to its exit record; None when another run has it."""
    folder = os.path.abspath(folder)
    if not claim(folder):
        return None
    manifest, job, record = {}, None, {}  # type: Record, Optional[Job], Record
    try:
        manifest = read_json(os.path.join(folder, "job.json"))
        if signals is None:
            become_subreaper()
            signals = Signals()
        signals.begin(folder)
        job = Job(folder, manifest, signals)
        error = work_through(job)
        signals.deferred = True  # from here on it is too late to be cancelled
    except Exception as failure:
        error = failure
    if job is not None:
        job.signals.deferred = True
        record.update(job.record, application_status=job.reported("progress"))
        try:
            job.clean()
        except OSError as failure:
            error = error or failure
    record.update(exit_record(manifest, *verdict_of(error)))
    write_json(os.path.join(folder, "exit.json"), record)
    return record


def run_element(spool: str, batch: str, index: int) -> Optional[Record]:
    """Run one job of a submission; None when there is nothing to run."""
    folder = lay_out(spool, batch, index)
    record = run(folder) if folder is not None else None
    if folder is not None and record is not None:
        open(os.path.join(spool, "ended", os.path.basename(folder)), "w").close()
    return record


def main(arguments: List[str]) -> int:
    if arguments[:1] == ["run"] and len(arguments) == 2:
        record = run(arguments[1])
    elif arguments[:1] == ["element"] and len(arguments) == 4:
        record = run_element(arguments[1], arguments[2], int(arguments[3]))
    else:
        sys.stderr.write("usage: khomas_job.py run JOBDIR | element SPOOL BATCH INDEX\n")
        return 2
    if record is None:
        sys.stderr.write("%s was started before, or purged: nothing done\n" % " ".join(arguments[1:]))
        return 3
    return 0 if record["state"] == "SUCCEEDED" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
