"""What the job wrapper is told: `job.json`, described in wrapper/README.md."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec, Output
from khomas.api.storage.v1.grant_pb2 import AccessGrant
from khomas.api.storage.v1.storage_service_pb2 import Download
from khomas.scheduler.intake.blueprint import WantedFile
from khomas.scheduler.lifecycle.bounds import grown_bytes, grown_span, span
from khomas.scheduler.lifecycle.slow import SlowPolicy
from khomas.scheduler.records import Job, token_of

_DEFAULT_GRACE_SECONDS = 10.0
# Signs of life in a window of CPU efficiency, where those of every ten seconds are too few.
_BEATS = 8
_BEAT = timedelta(seconds=10)
_WHEN = {Output.WHEN_ALWAYS: "ALWAYS", Output.WHEN_ON_FAILURE: "ON_FAILURE"}


@dataclass(frozen=True, slots=True)
class Payload:
    """What one attempt runs, reads and makes."""

    command: Sequence[str]
    env: Mapping[str, str]
    inputs: Sequence[WantedFile] = ()
    # By LFN.
    downloads: Mapping[str, Download] = field(default_factory=dict)
    # Where outputs go; None = nothing goes there.
    upload: AccessGrant | None = None


def manifest(job: Job, spec: JobSpec, attempt_uid: str, number: int, payload: Payload) -> dict[str, Any]:
    """Write the manifest of one attempt."""
    written: dict[str, Any] = {
        "token": token_of(attempt_uid),
        "job": job.name,
        "attempt": number,
        "origin": attempt_uid,
        "command": list(payload.command),
        "env": dict(payload.env),
        "resources": _resources(spec, job),
        "kill_grace_s": grace_seconds(spec),
    }
    optional: dict[str, Any] = {
        "traceparent": job.traceparent,
        "inherit_env": spec.command.inherit_env,
        "success_exit_codes": list(spec.command.success_exit_codes),
        "pre_command": spec.command.pre_command,
        "post_command": spec.command.post_command,
        "log_bytes": spec.logs.max_bytes,
        "inputs": [_input(one, payload) for one in payload.inputs],
        "outputs": [_output(output) for output in spec.outputs],
    }
    written |= {key: value for key, value in optional.items() if value}
    slow = SlowPolicy.of(spec)
    if slow is not None and slow.window < _BEATS * _BEAT:
        written["heartbeat_s"] = max(0.1, slow.window.total_seconds() / _BEATS)
    if payload.upload is not None:
        written["upload"] = {"url_prefix": payload.upload.url, "headers": dict(payload.upload.headers)}
    return written


def grace_seconds(spec: JobSpec) -> float:
    """Time between SIGTERM and SIGKILL."""
    limits = spec.limits
    return span(limits.kill_grace).total_seconds() if limits.HasField("kill_grace") else _DEFAULT_GRACE_SECONDS


def needs_upload(spec: JobSpec) -> bool:
    """Whether files go to the catalogue."""
    return any(not is_sandbox(output) for output in spec.outputs)


def is_sandbox(output: Output) -> bool:
    """Whether the files stay with the job."""
    return not output.name_pattern or output.when == Output.WHEN_ON_FAILURE


def most_files(outputs: Iterable[Output]) -> int:
    """How many files may go to the catalogue."""
    return min(10_000, sum(output.max_files or 1000 for output in outputs if not is_sandbox(output)))


def _resources(spec: JobSpec, job: Job) -> dict[str, Any]:
    needs = spec.resources
    limits: dict[str, Any] = {
        "memory_bytes": grown_bytes(needs.memory_bytes, job.memory_factor),
        "disk_bytes": needs.disk_bytes,
        "wall_time_s": grown_span(needs.wall_time, job.wall_factor).total_seconds(),
        "cpu_time_s": grown_span(needs.cpu_time, job.wall_factor).total_seconds(),
    }
    return {"cpu_milli": needs.cpu_milli or 1000, **{key: value for key, value in limits.items() if value}}


def _input(wanted: WantedFile, payload: Payload) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": wanted.path}
    if wanted.executable:
        entry["executable"] = True
    if wanted.content is not None:
        entry["content"] = base64.b64encode(wanted.content).decode()
    elif wanted.local is not None:
        entry["sources"] = [{"url": wanted.local.as_uri()}]
    else:
        download = payload.downloads[wanted.lfn]
        entry["sources"] = [{"url": grant.url, "headers": dict(grant.headers)} for grant in download.grants]
        entry["size_bytes"] = download.size_bytes
        if download.checksums.adler32:
            entry["adler32"] = download.checksums.adler32
    return entry


def _output(output: Output) -> dict[str, Any]:
    written: dict[str, Any] = {"glob": output.glob, "when": _WHEN.get(output.when, "ON_SUCCESS")}
    numbers = ("min_files", "max_files", "min_bytes", "max_bytes")
    written |= {key: getattr(output, key) for key in numbers if getattr(output, key)}
    if is_sandbox(output):
        written["sandbox"] = True
    if output.HasField("fits"):
        written["fits"] = {"hdus": list(output.fits.hdus), "tables": list(output.fits.tables)}
    if output.header_metadata:
        written["header_cards"] = [card.partition("=")[0] for card in output.header_metadata]
    return written
