"""A real `khomas up` in a process of its own, and the `khomas` command."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
PATIENCE = 180
# How every JWT begins: base64 of `{"`.
TOKEN = "eyJ"


@dataclass(slots=True)
class Installation:
    """A `khomas up` that can be killed and started again on the same state."""

    state: Path
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    # Of the services, as environment variables.
    settings: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.launch()
        assert self.process is not None
        ready = self.state / "ready"
        end = time.monotonic() + PATIENCE
        while not ready.exists():
            assert self.process.poll() is None, (self.state / "services.log").read_text()[-3000:]
            assert time.monotonic() < end, "khomas up is not ready"
            time.sleep(0.02)
        endpoint = json.loads((self.state / "services/endpoint.json").read_text())
        self.environment = {
            **self._clean(),
            "KHOMAS_ENDPOINT": endpoint["endpoint"],
            "BEARER_TOKEN_FILE": endpoint["token_file"],
        }

    def launch(self) -> None:
        """Start it."""
        ready = self.state / "ready"
        ready.unlink(missing_ok=True)
        command = [str(BIN / "khomas"), "up", "--state", str(self.state / "services"), "--port", "0", "--vo", "hess"]
        with (self.state / "services.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--ready-file", str(ready)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._clean() | self.settings,
            )

    @property
    def token(self) -> str:
        """The token that `khomas up` made."""
        return Path(self.environment["BEARER_TOKEN_FILE"]).read_text()

    def kill(self) -> None:
        """End it as a power cut does to a process."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)

    def stop(self) -> None:
        """End it gracefully, and the runner of jobs with it; whatever ran, its log holds no token."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(PATIENCE)
        for record in self.state.rglob("runner.json"):
            pid = json.loads(record.read_text()).get("pid")
            with suppress(FileNotFoundError, ProcessLookupError):  # it may have ended by itself
                if pid and "khomas_runner" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGTERM)
        assert TOKEN not in (self.state / "services.log").read_text(errors="replace")

    @staticmethod
    def _clean() -> dict[str, str]:
        hidden = ("KHOMAS_", "BEARER_TOKEN")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
        return {**kept, "PATH": f"{BIN}{os.pathsep}{kept.get('PATH', '')}", "NO_COLOR": "1"}

    def run(self, *arguments: object, code: int = 0, folder: Path | None = None) -> str:
        """Run a command, check its exit code, and return what it printed."""
        command = [str(BIN / "khomas"), *map(str, arguments)]
        answer = subprocess.run(
            command, env=self.environment, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert answer.returncode == code, f"{' '.join(command)}: {answer.returncode}\n{answer.stdout}\n{answer.stderr}"
        return answer.stdout + (answer.stderr if code else "")

    def rows(self, *arguments: object) -> list[dict[str, Any]]:
        """Run a command with --json and return the objects that it printed."""
        words = [str(argument) for argument in arguments]
        words.insert(words.index("--") if "--" in words else len(words), "--json")
        return [json.loads(line) for line in self.run(*words).splitlines()]

    def submit(self, *arguments: object, code: int = 0) -> str:
        """Submit, wait, and return the id."""
        (answer,) = self.rows("submit", *arguments)
        self.run("wait", answer["id"], "--timeout", "45s", code=code)
        return str(answer["id"])
