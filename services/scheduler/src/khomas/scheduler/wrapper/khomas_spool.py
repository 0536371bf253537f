#!/usr/bin/env python3
# Runs on Python 3.6 and newer with the standard library alone.
"""Keep the job folders of a batch system on its submit host: a request as JSON on stdin, the answer on stdout.

One request does something to many jobs at once, so a service behind ssh needs one round trip. The commands of the
batch system are run from here, between the writing down of what is handed over and the noting of native ids: whoever
asked may die at any time, nothing is handed over twice. What a submission costs hardly depends on how many jobs it has.

places/TOKEN   the name of the submission that a job went with; making it is what hands a job over once. Those of one
               submission are links to one file, because a link is ten times cheaper than a file
batches/ID/    name, tokens (one a line, in the order of elements), manifests (a line each), offsets (where those begin,
               16 bytes each), script, native (what the batch system calls it), process (who waits for a slot)
natives/NATIVE the batch of a native id
jobs/TOKEN/    a job folder as khomas_job.py wants it: made by that on the node, where the job begins, or from here
               to cancel it before; a job whose place is gone or names another submission never begins
ended/TOKEN    the wrapper has left an exit record: one look at this folder finds all that ended
"""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Set

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


def sync(folder: str) -> None:
    """Make the names in a folder durable, all with one write."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        # Indices of tokens, by batch.
        self.orders = {}  # type: Dict[str, Dict[str, int]]
        for name in ("jobs", "places", "batches", "natives", "ended"):
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
        if "each" in batch:
            parts = [(job["token"], [job]) for job in batch["jobs"]]
        else:
            parts = [(batch["batch"], batch["jobs"])]
        written = in_threads(
            lambda part: self.write_down(part[0], part[1], taken, batch["script"]), parts, WRITTEN_AT_ONCE
        )
        sync(self.path("places"))
        orders = [(name, fresh) for (name, _), fresh in zip(parts, written) if fresh]
        done = in_threads(lambda order: self.hand_over(batch, order[0], order[1], request), orders, AT_ONCE)
        fresh = [token for tokens in written for token in tokens]
        known = {job["token"] for job in batch["jobs"]}.difference(fresh)
        return {
            "known": {token: self.whereabouts(token) for token in known},
            "fresh": fresh,
            "natives": {tokens[0]: native for (_, tokens), native in zip(orders, done)},
            "commands": [native["command"] for native in done],
        }

    def write_down(self, name: str, jobs: List[Record], taken: Set[str], script: str) -> List[str]:
        """Write down what is about to be handed over; return the tokens that no submission has yet."""
        folder = self.path("batches", name)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        write(folder + "/name", name)
        left = set()  # type: Set[str]
        fresh = [job for job in jobs if self.take_place(job["token"], folder, taken, left)]
        for batch in left - {name}:
            self.forget_batch(batch)
        if not fresh:
            self.forget_batch(name)
            return []
        tokens = [job["token"] for job in fresh]
        lines = [json.dumps(job["manifest"]) + "\n" for job in fresh]  # in ASCII
        starts = itertools.accumulate([0] + [len(line) for line in lines])
        write(folder + "/manifests", "".join(lines))
        write(folder + "/offsets", "".join("%015d\n" % start for start in starts))
        write(folder + "/tokens", "".join(token + "\n" for token in tokens))
        write(folder + "/script", fill(script, self.filled(name, tokens)))
        os.chmod(folder + "/script", 0o700)
        return tokens

    def take_place(self, token: str, folder: str, taken: Set[str], left: Set[str]) -> bool:
        """Say with which submission a job goes; False when it went before, and is not to be taken over."""
        place = self.path("places", token)
        if token in taken and not self.begun(token):
            left.add(self.batch_of(token))
            remove(place)
        try:
            os.link(folder + "/name", place)
        except FileExistsError:
            return False
        except OSError:  # no more links to one file, or none at all; whoever is here holds the lock
            if os.path.exists(place):
                return False
            write_fast(place + ".tmp", os.path.basename(folder))
            os.rename(place + ".tmp", place)
        return True

    def filled(self, name: str, fresh: List[str]) -> Dict[str, str]:
        """What the words in commands and scripts stand for."""
        folder = self.path("batches", name)
        filled = {"@BATCH@": name, "@FOLDER@": folder, "@SPOOL@": self.root, "@LAST@": str(len(fresh) - 1)}
        filled.update({"@COUNT@": str(len(fresh)), "@TOKEN@": fresh[0], "@SCRIPT@": folder + "/script"})
        return filled

    def hand_over(self, batch: Record, name: str, fresh: List[str], request: Record) -> Record:
        """Hand over what was written down, write down what it is called there."""
        array = len(fresh) > 1
        words = batch["each" if "each" in batch else "array" if array else "single"]
        filled = self.filled(name, fresh)
        command = self.command([fill(word, filled) for word in words], batch.get("helper"), request)
        found = re.search(batch["native"], command["stdout"] + "\n" + command["stderr"])
        if command["exit_code"] == 0 and found:
            self.note_native(name, found.group(1), array)
            return {"native": found.group(1), "array": array, "command": command}
        refused = re.search(batch["refused"], command["stderr"] + command["stdout"]) if batch.get("refused") else None
        if refused or command.get("unstarted"):
            for token in fresh:
                remove(self.path("places", token))
            delete(self.path("batches", name))
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

    def batch_of(self, token: str) -> str:
        """The submission that a job went with; empty when there is no such job."""
        try:
            with open(self.path("places", token)) as stream:
                return stream.read()
        except OSError:
            return ""

    def begun(self, token: str) -> bool:
        return os.path.exists(self.path("jobs", token) + "/started")

    def whereabouts(self, token: str) -> Optional[Record]:
        """With which batch a job went and what that is called; None when there is no such job."""
        batch = self.batch_of(token)
        if not batch:
            return None
        if batch not in self.orders:
            self.orders[batch] = {token: index for index, token in enumerate(self.tokens_of(batch))}
        native = read_json(self.path("batches", batch) + "/native") or {"native": None, "array": False}
        return dict(native, batch=batch, index=self.orders[batch].get(token, 0), begun=self.begun(token))

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
        """Ask the batch system, then say which of the wanted jobs have ended, and what some have used so far."""
        answer = self.commands(request)
        ended = set(os.listdir(self.path("ended")))
        wanted = request["wanted"]
        answer["records"] = {
            token: record for token in wanted if token in ended for record in [self.record(token)] if record
        }
        if request.get("processes"):
            waiting = [token for token in wanted if token not in answer["records"]]
            answer["processes"] = {token: self.process(token) for token in waiting}
        measured = [token for token in request.get("measure", ()) if token not in answer["records"]]
        answer["used"] = at_once(measured, self.used) if measured else {}
        return answer

    def judge(self, request: Record) -> Record:
        """Look closely at jobs that the batch system does not have any more."""
        answer = self.commands(request)
        jobs = {}  # type: Record
        answer["jobs"] = jobs
        for token in request["tokens"]:
            folder = self.path("jobs", token)
            jobs[token] = {
                "there": bool(self.batch_of(token)),
                "record": self.record(token),
                "cancelled": os.path.exists(os.path.join(folder, "cancel")),
                "started": read_json(os.path.join(folder, "started")),
            }
        return answer

    def record(self, token: str) -> Any:
        return read_json(os.path.join(self.path("jobs", token), "exit.json"))

    def used(self, token: str) -> Optional[Record]:
        """What the wrapper last told of a running job, and since when it runs; None before that."""
        folder = self.path("jobs", token)
        beat = read_json(os.path.join(folder, "heartbeat"))
        started = read_json(os.path.join(folder, "started")) if beat else None
        return {"started": started, "beat": beat} if started else None

    def process(self, token: str) -> Record:
        """Who runs a job, as far as its folder tells."""
        folder = self.path("jobs", token)
        started = read_json(os.path.join(folder, "started"))
        if started is None:
            batch = self.batch_of(token)
            return {"there": bool(batch), "started": None, "lives": bool(batch) and self.waits(batch)}
        return {"there": True, "started": started, "lives": lives(started)}

    def waits(self, batch: str) -> bool:
        """Whether the script of a job by itself has begun and is still there."""
        try:
            with open(self.path("batches", batch) + "/process", "rb") as stream:
                boot, _, stat = stream.read().partition(b" ")
            pid, ticks = int(stat.split()[0]), int(stat.rpartition(b")")[2].split()[19])
        except (OSError, ValueError, IndexError):
            return False
        return lives({"boot": boot.decode(), "pid": pid, "ticks": ticks})

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
        said = at_once(request["tokens"], lambda token: self.cancel_one(token, request))
        return {what: [token for token in request["tokens"] if said[token] == what] for what in ("waiting", "running")}

    def cancel_one(self, token: str, request: Record) -> str:
        """Say whether it was waiting or running; empty when it has ended or never was."""
        folder = self.path("jobs", token)
        if os.path.exists(os.path.join(folder, "exit.json")) or not self.batch_of(token):
            return ""
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if self.end_unstarted(token, folder):
            return "waiting"
        write_fast(os.path.join(folder, "cancel"), json.dumps({"grace_s": request["grace_s"]}))
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
        # A crash of the machine may cost the record: then the batch system tells of the end that it was told.
        write_fast(os.path.join(folder, "exit.json.tmp"), json.dumps(record))
        os.rename(os.path.join(folder, "exit.json.tmp"), os.path.join(folder, "exit.json"))
        write_fast(self.path("ended", token), "")
        return True

    def purge(self, request: Record) -> Record:
        """Delete the folders of jobs that have ended; `gone` ones are known not to run."""
        gone = set(request.get("gone", ()))
        found = at_once(request["tokens"], lambda token: self.purge_one(token, token in gone))
        for batch in set(found.values()) - {None, ""}:
            self.forget_batch(batch)
        return {"refused": [token for token, batch in found.items() if batch is None]}

    def purge_one(self, token: str, gone: bool) -> Optional[str]:
        """Return the batch of a job that is deleted now; None when it has not ended."""
        batch = self.batch_of(token)
        if batch and not gone and self.record(token) is None:
            return None
        remove(self.path("places", token))  # first: from here on nobody begins it
        delete(self.path("jobs", token))
        remove(self.path("ended", token))
        return batch

    def forget_batch(self, batch: str) -> None:
        """Delete a batch when the last of its jobs is gone."""
        if any(self.batch_of(token) == batch for token in self.tokens_of(batch)):
            return
        native = read_json(self.path("batches", batch) + "/native")
        if native is not None:
            remove(self.path("natives", native["native"]))
        delete(self.path("batches", batch))

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


def in_threads(do: Callable[[Any], Any], what: List[Any], width: int) -> List[Any]:
    """Do something with each, some at the same time."""
    from concurrent.futures import ThreadPoolExecutor  # a look at jobs starts quicker without it

    with ThreadPoolExecutor(min(width, len(what)) or 1) as pool:
        return list(pool.map(do, what))


def at_once(tokens: List[str], do: Callable[[str], Any]) -> Dict[str, Any]:
    """Do something for many jobs, some at the same time: a folder on a network takes its time with each."""
    parts = [tokens[start::WRITTEN_AT_ONCE] for start in range(min(WRITTEN_AT_ONCE, len(tokens)))]
    done = in_threads(lambda part: {token: do(token) for token in part}, parts, WRITTEN_AT_ONCE)
    return {token: answer for some in done for token, answer in some.items()}


def delete(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


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
        return fields[0] not in (b"Z", b"X") and int(fields[19]) == started["ticks"]
    except (OSError, KeyError, TypeError):
        return False


OPERATIONS = ("submit", "find", "adopt", "tokens", "look", "judge", "peek", "cancel", "purge", "commands")


def main(arguments: List[str]) -> int:
    if arguments:
        raise ValueError("the request is read from stdin")
    request = json.load(sys.stdin)
    if request["op"] not in OPERATIONS:
        raise ValueError("no such operation: %r" % request["op"])
    answer = getattr(Spool(request["spool"]), request["op"])(request)
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
