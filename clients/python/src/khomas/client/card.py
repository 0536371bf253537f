"""A job as a card in a notebook."""

from html import escape
from typing import Any

from khomas.client.jobs import reason_of, state_of
from khomas.client.units import show_size

_COLOURS = {"SUCCEEDED": "#2a7", "FAILED": "#c33", "CANCELLED": "#888", "RUNNING": "#27c"}
_STEPS = ("create_time", "submit_time", "start_time", "end_time")


def card(job: Any, document: dict[str, Any], log_tail: str) -> str:
    """Return HTML with the state, the timeline, the resources and the last lines of the log."""
    if job is None:
        return f"<div><b>{escape(str(document.get('name', 'job')))}</b> not submitted</div>"
    state = state_of(job)
    bar = f'<div style="background:{_COLOURS.get(state, "#c90")};height:6px;border-radius:3px"></div>'
    why = f" ({escape(reason_of(job.status))})" if job.status.reason else ""
    title = f"<b>{escape(job.spec.display_name or job.uid)}</b> {escape(state)}{why}"
    rows = "".join(f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in _facts(job))
    log = f"<pre>{escape(chr(10).join(log_tail.splitlines()[-10:]))}</pre>" if log_tail else ""
    return f'<div style="border:1px solid #ccc;padding:8px;max-width:48em">{title}{bar}<table>{rows}</table>{log}</div>'


def _facts(job: Any) -> list[tuple[str, str]]:
    facts = [("id", job.uid), ("message", job.status.message)]
    if job.attempts:
        attempt = job.attempts[-1]
        facts += [
            (step.replace("_", " "), getattr(attempt, step).ToJsonString()) for step in _STEPS if attempt.HasField(step)
        ]
        facts += [("backend", attempt.backend), ("node", attempt.node)]
        facts.append(("memory", show_size(attempt.usage.max_memory_bytes)))
    return [(key, value) for key, value in facts if value]
