"""A job as a script that a person can run."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from khomas.scheduler.backends.interface import RenderedScript
from khomas.scheduler.wrapper import JOB_WRAPPER


def render_script(token: str, manifest: Mapping[str, Any]) -> RenderedScript:
    """A script with the manifest in it; the headers of inputs and upload are secrets and stay out."""
    content = json.dumps(without_secrets(manifest), indent=1, sort_keys=True)
    lines = [
        "#!/bin/sh",
        f"# {manifest.get('job') or token}, attempt {manifest.get('attempt', 1)}.",
        "# Runs in a new folder, or in the one given as argument.",
        "set -eu",
        'folder=${1:-$(mktemp -d "${TMPDIR:-/tmp}/khomas-job.XXXXXX")}',
        'mkdir -p "$folder"',
        "cat > \"$folder/job.json\" <<'END OF MANIFEST'",
        content,
        "END OF MANIFEST",
        'echo "job folder: $folder" >&2',
        f'exec python3 {shlex.quote(str(JOB_WRAPPER))} run "$folder"',
    ]
    return RenderedScript(token, f"{token}.sh", "\n".join(lines) + "\n")


def without_secrets(value: Any) -> Any:
    """Drop the headers of inputs and upload, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_secrets(part) for key, part in value.items() if key != "headers"}
    if isinstance(value, list | tuple):
        return [without_secrets(part) for part in value]
    return value
