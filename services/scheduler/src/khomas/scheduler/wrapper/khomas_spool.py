#!/usr/bin/env python3
# Runs on Python 3.6 and newer with the standard library alone.
"""Keep the job folders of a batch system on its submit host: a request as JSON on stdin, the answer on stdout.

One request does something to many jobs at once, so a service behind ssh needs one round trip. The commands of the
batch system are run from here, between the making of job folders and the noting of native ids: whoever asked may die
at any time, nothing is handed over twice.

jobs/TOKEN/       a job folder as khomas_job.py wants it; making it is what makes a job run once
jobs/TOKEN/batch  {"batch", "index"}: with which submission it went, as which element
batches/ID/       tokens (one a line, in the order of elements), script, native (what the batch system calls it)
natives/NATIVE    the batch of a native id
ended/TOKEN       the wrapper has left an exit record: one look at this folder finds all that ended
"""

import base64
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, List, Optional

AT_ONCE = 8
# Durable files at the same time share the work of the disk: a thousand in 0.4 s instead of 4.5 s.
WRITTEN_AT_ONCE = 16
CLOSE_SECONDS = 5.0
STDERR_BYTES = 4096
PEEK_BYTES = 1 << 20
Record = Dict[str, Any]


def read_json(path: str) -> Any:
    """Return what a file holds, None when there is none or it is not whole yet."""
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return None


def write(path: str, text: str) -> None:
    """Write so that a reader finds the whole file or none, durably."""
    handle = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(path + ".tmp", path)


def run(argv: List[str], env: Dict[str, str], seconds: float) -> Record:
    """Run a command in a process group of its own under a deadline."""
    began = time.time()
    answer = {"argv": argv, "exit_code": None, "stdout": "", "stderr": "", "time": began}  # type: Record
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ, **env),
            start_new_session=True,
        )
    except OSError as error:
        return dict(answer, stderr="%s cannot be started: %s" % (argv[0], error), unstarted=True)
    try:
        stdout, stderr = process.communicate(timeout=seconds)
        answer.update(exit_code=process.returncode, stdout=stdout.decode("utf-8", "replace"))
        answer["stderr"] = stderr.decode("utf-8", "replace")[-STDERR_BYTES:]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        answer["stderr"] = "no answer within %g s" % seconds
    return dict(answer, seconds=time.time() - began)


class Helper:
    """A program that stands for commands: the words of one a line in, its answer a line out.

    It is of the keeper's own process group: who gives the keeper up ends it too.
    """

    def __init__(self, argv: List[str], env: Dict[str, str]) -> None:
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(os.environ, **env),
        )

    def run(self, argv: List[str], seconds: float) -> Record:
        """Have it do what a command would; it ends with the deadline."""
        began = time.time()
        answer = {"argv": argv, "exit_code": None, "stdout": "", "stderr": "", "time": began}  # type: Record
        deadline = threading.Timer(seconds, self.end)
        deadline.start()
        try:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(json.dumps(argv).encode() + b"\n")
            self.process.stdin.flush()
            answer.update(json.loads(self.process.stdout.readline().decode()))
        except (OSError, ValueError):
            answer["stderr"] = "no answer within %g s" % seconds
            self.end()
        finally:
            deadline.cancel()
        return dict(answer, seconds=time.time() - began)

    @property
    def ended(self) -> bool:
        """Whether another one is needed."""
        return self.process.poll() is not None

    def end(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """Let it take its leave of the batch system, which would remember it else."""
        try:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(CLOSE_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            self.end()


class Spool:
    """The folders under one root."""

    def __init__(self, root: str, runner: Callable[[List[str], Dict[str, str], float], Record] = run) -> None:
        self.root = os.path.abspath(root)
        self.run = runner
        self.helper = None  # type: Optional[Helper]
        for name in ("jobs", "batches", "natives", "ended"):
            os.makedirs(os.path.join(self.root, name), mode=0o700, exist_ok=True)

    def path(self, *parts: str) -> str:
        """Return a path below the root."""
        for part in parts:
            if not part or "/" in part or part.startswith("."):
                raise ValueError("%r is no name of a job or batch" % part)
        return os.path.join(self.root, *parts)

    # ------------------------------------------------------------------------------------------- submit

    def submit(self, request: Record) -> Record:
        """Make job folders and hand each batch over; what is there already stays as it is."""
        with open(os.path.join(self.root, "lock"), "w") as lock:
            # Not lockf: that would not keep threads of one process apart.
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                return {"batches": [self.submit_batch(batch, request) for batch in request["batches"]]}
            finally:
                if self.helper is not None:
                    self.helper.close()

    def submit_batch(self, batch: Record, request: Record) -> Record:
        taken = set(batch.get("take_over", ()))
        known, fresh = {}, []  # type: Dict[str, Optional[Record]], List[str]
        with ThreadPoolExecutor(WRITTEN_AT_ONCE) as pool:
            made = list(pool.map(lambda job: self.make_folder(job, taken), batch["jobs"]))
        for job, new in zip(batch["jobs"], made):
            if new:
                fresh.append(job["token"])
            else:
                known[job["token"]] = self.whereabouts(job["token"])
        answer = {"known": known, "fresh": fresh, "commands": []}  # type: Record
        if not fresh:
            return answer
        if "each" in batch:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                parts = pool.map(lambda token: self.hand_over(batch, token, [token], request), fresh)
                answer["natives"] = dict(zip(fresh, parts))
        else:
            answer["natives"] = {fresh[0]: self.hand_over(batch, batch["batch"], fresh, request)}
        answer["commands"] = [native["command"] for native in answer["natives"].values()]
        return answer

    def make_folder(self, job: Record, taken: Any) -> bool:
        """Make a job folder; False when it was there, and is not to be taken over."""
        folder = self.path("jobs", job["token"])
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            begun = os.path.exists(os.path.join(folder, "started"))
            if begun or (job["token"] not in taken and os.path.exists(os.path.join(folder, "batch"))):
                return False
        write(os.path.join(folder, "job.json"), json.dumps(job["manifest"]))
        return True

    def hand_over(self, batch: Record, name: str, fresh: List[str], request: Record) -> Record:
        """Write down what is about to be handed over, do it, write down what it is called there."""
        folder = self.path("batches", name)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        write(os.path.join(folder, "tokens"), "".join(token + "\n" for token in fresh))
        filled = {"@BATCH@": name, "@FOLDER@": folder, "@SPOOL@": self.root, "@LAST@": str(len(fresh) - 1)}
        filled.update({"@COUNT@": str(len(fresh)), "@TOKEN@": fresh[0], "@SCRIPT@": os.path.join(folder, "script")})
        write(os.path.join(folder, "script"), fill(batch["script"], filled))
        os.chmod(os.path.join(folder, "script"), 0o700)
        for index, token in enumerate(fresh):
            write_fast(self.path("jobs", token) + "/batch", json.dumps({"batch": name, "index": index}))
        array = len(fresh) > 1
        argv = [fill(word, filled) for word in batch["each" if "each" in batch else "array" if array else "single"]]
        command = self.command(argv, batch.get("helper"), request)
        found = re.search(batch["native"], command["stdout"] + "\n" + command["stderr"])
        if command["exit_code"] == 0 and found:
            self.note_native(name, found.group(1), array)
            return {"native": found.group(1), "array": array, "command": command}
        refused = re.search(batch["refused"], command["stderr"] + command["stdout"]) if batch.get("refused") else None
        if refused or command.get("unstarted"):
            for token in fresh:
                shutil.rmtree(self.path("jobs", token), ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
        return {"native": None, "refused": bool(refused or command.get("unstarted")), "command": command}

    def command(self, argv: List[str], helper: Optional[List[str]], request: Record) -> Record:
        """Run a command, or have the helper that stands for it do the same."""
        env, seconds = request.get("env", {}), request["seconds"]
        if not helper:
            return self.run(argv, env, seconds)
        if self.helper is None or self.helper.ended:
            self.helper = Helper(helper, env)
        return self.helper.run(argv, seconds)

    def note_native(self, batch: str, native: str, array: bool) -> None:
        write(self.path("natives", native), batch)
        write(self.path("batches", batch) + "/native", json.dumps({"native": native, "array": array}))

    def whereabouts(self, token: str) -> Optional[Record]:
        """With which batch a job went and what that is called; None when there is no such job."""
        place = read_json(os.path.join(self.path("jobs", token), "batch"))
        if place is None:
            return None
        native = read_json(self.path("batches", place["batch"]) + "/native") or {"native": None, "array": False}
        begun = os.path.exists(os.path.join(self.path("jobs", token), "started"))
        return dict(place, begun=begun, **native)

    def find(self, request: Record) -> Record:
        """Say where jobs are."""
        return {"found": {token: self.whereabouts(token) for token in request["tokens"]}}

    def adopt(self, request: Record) -> Record:
        """Note native ids that were found by the name of their batch."""
        for batch, native in request["natives"].items():
            self.note_native(batch, native, len(self.tokens_of(batch)) > 1)
        return {}

    def tokens_of(self, batch: str) -> List[str]:
        try:
            with open(self.path("batches", batch) + "/tokens") as stream:
                return stream.read().split()
        except OSError:
            return []

    def tokens(self, request: Record) -> Record:
        """Tokens of native ids, in the order of their elements."""
        answer = {}  # type: Record
        for native in request["natives"]:
            try:
                with open(self.path("natives", native)) as stream:
                    batch = stream.read()
            except (OSError, ValueError):
                continue
            answer[native] = {"batch": batch, "tokens": self.tokens_of(batch)}
        return {"tokens": answer}

    # --------------------------------------------------------------------------------------------- look

    def look(self, request: Record) -> Record:
        """Ask the batch system, then say which of the wanted jobs have ended."""
        answer = self.commands(request)
        ended = set(os.listdir(self.path("ended")))
        wanted = request["wanted"]
        answer["records"] = {
            token: record for token in wanted if token in ended for record in [self.record(token)] if record
        }
        if request.get("processes"):
            waiting = [token for token in wanted if token not in answer["records"]]
            answer["processes"] = {token: self.process(token) for token in waiting}
        return answer

    def judge(self, request: Record) -> Record:
        """Look closely at jobs that the batch system does not have any more."""
        answer = self.commands(request)
        jobs = {}  # type: Record
        answer["jobs"] = jobs
        for token in request["tokens"]:
            folder = self.path("jobs", token)
            jobs[token] = {
                "there": os.path.exists(folder),
                "record": self.record(token),
                "cancelled": os.path.exists(os.path.join(folder, "cancel")),
                "started": read_json(os.path.join(folder, "started")),
            }
        return answer

    def record(self, token: str) -> Any:
        return read_json(os.path.join(self.path("jobs", token), "exit.json"))

    def process(self, token: str) -> Record:
        """Who runs a job, as far as its folder tells."""
        folder = self.path("jobs", token)
        started = read_json(os.path.join(folder, "started"))
        if started is None:
            return {"there": os.path.exists(folder), "started": None, "lives": False}
        return {"there": True, "started": started, "lives": lives(started)}

    def peek(self, request: Record) -> Record:
        """Read a piece of a log."""
        try:
            with open(os.path.join(self.path("jobs", request["token"]), request["stream"]), "rb") as log:
                size = os.fstat(log.fileno()).st_size
                offset = request["offset"]
                start = max(0, size + offset) if offset < 0 else min(offset, size)
                log.seek(start)
                data = log.read(min(request["limit"], PEEK_BYTES))
        except FileNotFoundError:
            return {"offset": 0, "size": 0, "data": ""}
        return {"offset": start, "size": size, "data": base64.b64encode(data).decode()}

    # ---------------------------------------------------------------------------------- cancel and purge

    def cancel(self, request: Record) -> Record:
        """Leave word for the wrappers; end at once what none of them has begun; say which are which."""
        with ThreadPoolExecutor(WRITTEN_AT_ONCE) as pool:
            said = list(pool.map(lambda token: self.cancel_one(token, request), request["tokens"]))
        answer = {"waiting": [], "running": []}  # type: Record
        for token, what in zip(request["tokens"], said):
            if what:
                answer[what].append(token)
        return answer

    def cancel_one(self, token: str, request: Record) -> str:
        """Say whether it was waiting or running; empty when it has ended or never was."""
        folder = self.path("jobs", token)
        if not os.path.isdir(folder) or os.path.exists(os.path.join(folder, "exit.json")):
            return ""
        write_fast(os.path.join(folder, "cancel"), json.dumps({"grace_s": request["grace_s"]}))
        if self.end_unstarted(token, folder):
            return "waiting"
        started = read_json(os.path.join(folder, "started")) if request.get("processes") else None
        if started is not None and lives(started):
            os.kill(started["pid"], signal.SIGTERM)
        return "running"

    def end_unstarted(self, token: str, folder: str) -> bool:
        """Take the place of the wrapper, so that it never begins; False when it has begun."""
        try:
            handle = os.open(os.path.join(folder, "started"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        moment = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + ".%06dZ" % (moment % 1 * 1e6)
        os.write(handle, json.dumps({"pid": 0, "ticks": 0, "boot": "", "host": "", "time": stamp}).encode())
        os.close(handle)
        record = {"format": 1, "token": token, "host": "", "state": "CANCELLED", "reason": 600, "end_time": stamp}
        record.update(reason_name="USER_CANCELLED", message="cancelled before it began", exit_code=None, outputs=[])
        write(os.path.join(folder, "exit.json"), json.dumps(record))
        write_fast(self.path("ended", token), "")
        return True

    def purge(self, request: Record) -> Record:
        """Delete the folders of jobs that have ended; `gone` ones are known not to run."""
        refused, gone, batches = [], set(request.get("gone", ())), set()
        for token in request["tokens"]:
            folder = self.path("jobs", token)
            if os.path.isdir(folder) and token not in gone and self.record(token) is None:
                refused.append(token)
                continue
            place = read_json(os.path.join(folder, "batch"))
            shutil.rmtree(folder, ignore_errors=True)
            remove(self.path("ended", token))
            if place is not None:
                batches.add(place["batch"])
        for batch in batches:
            self.forget_batch(batch)
        return {"refused": refused}

    def forget_batch(self, batch: str) -> None:
        """Delete a batch when the last of its jobs is gone."""
        if any(os.path.isdir(self.path("jobs", token)) for token in self.tokens_of(batch)):
            return
        native = read_json(self.path("batches", batch) + "/native")
        if native is not None:
            remove(self.path("natives", native["native"]))
        shutil.rmtree(self.path("batches", batch), ignore_errors=True)

    def commands(self, request: Record) -> Record:
        """Run commands of the batch system, one after the other."""
        env, seconds = request.get("env", {}), request["seconds"]
        return {"commands": [self.run(argv, env, seconds) for argv in request.get("commands", ())]}


def write_fast(path: str, text: str) -> None:
    """Write a small file whose loss in a crash of the machine does no harm."""
    with open(path, "w") as stream:
        stream.write(text)


def remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def fill(text: str, values: Dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def lives(started: Record) -> bool:
    """Whether the process that claimed a job folder of this machine is still there."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            if started["boot"] != stream.read().strip():
                return False
        with open("/proc/%d/stat" % started["pid"], "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return fields[0] not in (b"Z", b"X") and int(fields[19]) == started["ticks"]


OPERATIONS = ("submit", "find", "adopt", "tokens", "look", "judge", "peek", "cancel", "purge", "commands")


def main() -> int:
    request = json.load(sys.stdin)
    if request["op"] not in OPERATIONS:
        raise ValueError("no such operation: %r" % request["op"])
    answer = getattr(Spool(request["spool"]), request["op"])(request)
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
