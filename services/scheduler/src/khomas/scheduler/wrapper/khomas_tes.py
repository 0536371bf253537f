#!/usr/bin/env python3
# Runs on Python 3.6 and newer with the standard library alone.
"""Run the executors of a GA4GH TES task one after the other: `python3 khomas_tes.py TASK LOG` in the work directory.

TASK is what the service made of the task: `task`, the document; `names`, the paths that it declares; `directories`,
those that have to be there. The paths of the task lie below `root/`: in commands and variables, the declared ones are
replaced by where they lie. LOG gets, after every step, what the executors did. The exit code is that of the first one
that failed.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import IO, Any, Dict, List, Optional

Record = Dict[str, Any]
TAIL_BYTES = 8192
# For output of processes that an executor left behind.
LEFT_BEHIND_SECONDS = 5.0
NOT_FOUND, NOT_EXECUTABLE = 127, 126


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_json(path: str, value: Any) -> None:
    with open(path + ".tmp", "w") as stream:
        json.dump(value, stream)
    os.rename(path + ".tmp", path)


class Tree:
    """Where the paths of the task lie."""

    def __init__(self, root: str, names: List[str]) -> None:
        self.root = root
        longest_first = sorted(names, key=len, reverse=True)
        choice = "|".join(re.escape(name) for name in longest_first)
        self.declared = re.compile(r"(?<![\w./-])(?:%s)(?![\w.-])" % choice) if names else None

    def place(self, path: str) -> str:
        return self.root + path

    def rewritten(self, text: str) -> str:
        if self.declared is None:
            return text
        return self.declared.sub(lambda found: self.place(found.group()), text)


class Copy(threading.Thread):
    """Copies a stream to the log of the job, and to a file if the task wants one; keeps its end."""

    def __init__(self, source: IO[bytes], log: IO[bytes], path: Optional[str]) -> None:
        super().__init__(daemon=True)
        self.source, self.log, self.path = source, log, path
        self.tail = b""
        self.start()

    def run(self) -> None:
        with open(self.path or os.devnull, "wb", buffering=0) as target:
            for piece in iter(lambda: os.read(self.source.fileno(), 65536), b""):
                self.log.write(piece)
                self.log.flush()
                target.write(piece)
                self.tail = (self.tail + piece)[-TAIL_BYTES:]


def execute(executor: Record, tree: Tree, record: Record) -> None:
    """Run one executor and note what it did."""
    env = dict(os.environ, KHOMAS_TES_ROOT=tree.root)
    env.update({name: tree.rewritten(value) for name, value in (executor.get("env") or {}).items()})
    command = [tree.rewritten(word) for word in executor["command"]]
    places = {key: tree.place(executor[key]) for key in ("stdin", "stdout", "stderr", "workdir") if executor.get(key)}
    try:
        with open(places.get("stdin", os.devnull), "rb") as stdin:
            process = subprocess.Popen(
                command,
                cwd=places.get("workdir", tree.root),
                env=env,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
    except OSError as error:
        message = "%s: %s\n" % (error.filename or command[0], error.strerror)
        sys.stderr.write(message)
        found = isinstance(error, PermissionError)
        record.update(exit_code=NOT_EXECUTABLE if found else NOT_FOUND, stdout="", stderr=message)
        return
    assert process.stdout is not None
    assert process.stderr is not None
    copies = {
        "stdout": Copy(process.stdout, sys.stdout.buffer, places.get("stdout")),
        "stderr": Copy(process.stderr, sys.stderr.buffer, places.get("stderr")),
    }
    code = process.wait()
    for copy in copies.values():
        copy.join(LEFT_BEHIND_SECONDS)
    record.update({name: copy.tail.decode("utf-8", "replace") for name, copy in copies.items()})
    record["exit_code"] = code if code >= 0 else 128 - code


def main() -> int:
    task_file, log_file = sys.argv[1:]
    with open(task_file, encoding="utf-8") as stream:
        told = json.load(stream)
    tree = Tree(os.path.join(os.getcwd(), "root"), told["names"])
    for directory in ["", *told["directories"]]:
        os.makedirs(tree.place(directory), exist_ok=True)
    records = []  # type: List[Record]
    # The executor gets the signal too, and the time that it needs to end.
    asked_to_end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked_to_end.set())
    for executor in told["task"]["executors"]:
        record = {"start_time": now()}  # type: Record
        records.append(record)
        write_json(log_file, records)
        execute(executor, tree, record)
        record["end_time"] = now()
        write_json(log_file, records)
        if asked_to_end.is_set():
            return int(record["exit_code"]) or 128 + signal.SIGTERM
        if record["exit_code"] and not executor.get("ignore_error"):
            return int(record["exit_code"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
