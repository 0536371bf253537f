"""A job's spec back to the document that makes it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from khomas.client.errors import UsageError
from khomas.client.files import DATASETS


def document_of_job(message: Any) -> dict[str, Any]:
    """Return the document of a job; that of an array's child makes an array of this child alone.

    Raises UsageError for a child of an array that was split by its files.
    """
    document = document_of_spec(message.spec)
    if not message.parent:
        return document
    document.pop("merge", None)
    splitter = message.spec.splitter
    match splitter.WhichOneof("kind"):
        case "files":
            array = message.parent.removeprefix("jobs/")
            raise UsageError(f"{message.uid} got its files from a splitter: export {array}, and name them as inputs")
        case "args":
            document["split"] = {"args": [_arguments(splitter.args.sets[message.index])]}
        case "count":
            document["split"] = {"count": 1}
        case _:
            split = _split(splitter)
            grid = {axis: [_typed(message.parameters[axis])] for axis in split["grid"]}
            document["split"] = _told({"grid": grid, "derive": split.get("derive")})
    return document


def _typed(text: str) -> float | str:
    """Return the value of an axis as it was before it became a parameter of a job."""
    try:
        return float(text)
    except ValueError:
        return text


def document_of_spec(spec: Any) -> dict[str, Any]:
    """Return a job document; submitted again it gives the same spec, but for what `left_out` tells.

    Sandbox files are named by their SHA-256, for the local files may be gone.
    """
    document: dict[str, Any] = {
        "name": spec.display_name,
        **_command(spec.command),
        "tags": dict(spec.tags),
        "note": spec.note,
        "inputs": [_input(one) for one in spec.inputs],
        "outputs": [_output(one) for one in spec.outputs],
        "on": list(spec.placement.backends),
        "queue": spec.placement.queue,
        "native": {kind: dict(options) for kind, options in spec.placement.native.items()},
        "require_local_data": spec.placement.require_data_local,
        "platform": spec.environment.platform,
        "priority": spec.priority,
        **_resources(spec.resources),
        "split": _split(spec.splitter),
        "merge": [_merger(one) for one in spec.mergers],
        "after": [one.job.removeprefix("jobs/") for one in spec.dependencies],
        "retry": _retry(spec.retry),
        "share": spec.share,
        **_limits(spec),
    }
    return _told(document)


def left_out(spec: Any) -> list[str]:
    """Return the parts of a spec that its document does not say, such as "limits.start_after"."""
    from khomas.client.specs import Sandboxes, job_spec

    again = job_spec(document_of_spec(spec), Sandboxes(Path()))
    return sorted(_differences(spec, again))


def _differences(one: Any, other: Any) -> set[str]:
    found = set()
    for field in one.DESCRIPTOR.fields:
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if mine == theirs:
            continue
        inner = field.message_type is not None and not isinstance(mine, Sequence) and hasattr(mine, "DESCRIPTOR")
        if inner and one.HasField(field.name) and other.HasField(field.name):
            found |= {f"{field.name}.{name}" for name in _differences(mine, theirs)}
        else:
            found.add(field.name)
    return found


def _told(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is as it would be without it."""
    return {key: value for key, value in document.items() if value not in ("", [], {}, 0, False, None)}


def _command(command: Any) -> dict[str, Any]:
    return {
        "run": [command.executable, *command.arguments],
        "env": dict(command.env),
        "inherit_env": command.inherit_env,
        "pre": command.pre_command,
        "post": command.post_command,
        "success_exit_codes": list(command.success_exit_codes),
    }


def _resources(resources: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"automatic": resources.automatic}
    if resources.cpu_milli:
        found["cpus"] = resources.cpu_milli / 1000
    for key, field in (("memory", "memory_bytes"), ("disk", "disk_bytes")):
        if amount := getattr(resources, field):
            found[key] = f"{amount}B"
    return {**found, **_times(resources, wall="wall_time", cpu_time="cpu_time")}


def _times(message: Any, **fields: str) -> dict[str, str]:
    """Write durations that are set, by key of the document."""
    found = {}
    for key, field in fields.items():
        if message.HasField(field):
            seconds = getattr(message, field).ToTimedelta().total_seconds()
            found[key] = f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"
    return found


def _limits(spec: Any) -> dict[str, Any]:
    from khomas.client.specs import SLOW_ACTIONS

    limits = spec.limits
    slow = {
        "efficiency": limits.min_cpu_efficiency,
        "action": _word(SLOW_ACTIONS, limits.slow_action),
        **_times(limits, window="efficiency_window", answer="slow_answer_time"),
    }
    return {
        "max_log": f"{spec.logs.max_bytes}B" if spec.logs.max_bytes else "",
        "slow": _told(slow) if limits.min_cpu_efficiency else {},
        **_times(limits, kill_grace="kill_grace"),
        **_times(spec, retain="retain_after_end"),
    }


def _word(words: Mapping[str, int], number: int) -> str:
    return next((word for word, one in words.items() if one == number), "")


def _retry(retry: Any) -> dict[str, Any]:
    from khomas.api.scheduler.v1 import state_pb2
    from khomas.client.specs import ACTIONS

    rules = [
        {
            "reason": [state_pb2.Reason.Name(one).removeprefix("REASON_") for one in rule.reasons],
            "exit_code": list(rule.exit_codes),
            "log": rule.log_regex,
            "action": _word(ACTIONS, rule.action),
            "memory": rule.grow_memory,
            "wall": rule.grow_wall,
        }
        for rule in retry.rules
    ]
    found = _told(
        {
            "max_attempts": retry.max_attempts,
            **_times(retry, backoff="initial_backoff"),
            "avoid_failed_nodes": retry.avoid_failed_nodes,
            "avoid_failed_backend": retry.avoid_failed_backend,
            "rules": [_told(rule) for rule in rules],
        }
    )
    return {**found, "jitter": retry.jitter} if retry.HasField("jitter") else found


def _merger(one: Any) -> dict[str, Any]:
    what: dict[str, Any]
    if one.HasField("text"):
        what = {"text": _told({"path": one.text.path, "headers": one.text.headers})}
    else:
        what = _command(one.command)
    return _told(
        {
            **what,
            "match": one.match,
            "min_fraction": one.min_fraction,
            "inputs": [_input(given) for given in one.inputs],
            "outputs": [_output(made) for made in one.outputs],
            **_resources(one.resources),
        }
    )


def _input(one: Any) -> dict[str, Any]:
    kind = one.WhichOneof("source")
    keys = {"file": "file", "query": "query", "inline_content": "content", "job_outputs": "job"}
    if kind == "dataset":
        found = {"dataset": one.dataset.removeprefix(DATASETS)}
    elif kind == "sandbox":
        found = {"sandbox": one.sandbox.sha256, "size": one.sandbox.size_bytes}
    else:
        content = getattr(one, kind)
        found = {keys[kind]: content.decode(errors="replace") if isinstance(content, bytes) else content}
    extra = {"path": one.path, "match": one.match, "executable": one.executable}
    return {**found, **{key: value for key, value in extra.items() if value}}


def _output(one: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "glob": one.glob,
        "name": one.name_pattern,
        "se": list(one.storage_elements),
        "dataset": [name.removeprefix(DATASETS) for name in one.datasets],
        "metadata": dict(one.metadata),
        "headers": list(one.header_metadata),
        "min_files": one.min_files,
        "max_files": one.max_files,
        "min_bytes": one.min_bytes,
        "max_bytes": f"{one.max_bytes}B" if one.max_bytes else "",
        "when": type(one).When.Name(one.when).removeprefix("WHEN_").lower() if one.when else "",
    }
    if one.HasField("fits"):
        found["fits"] = {"hdus": list(one.fits.hdus), "tables": list(one.fits.tables)}
    return _told(found)


def _split(splitter: Any) -> dict[str, Any]:
    kind = splitter.WhichOneof("kind")
    if kind is None:
        return {}
    found: dict[str, Any] = {"max_running": splitter.max_running, "max_jobs": splitter.max_jobs}
    if kind == "count":
        found["count"] = splitter.count.count
    elif kind == "grid":
        found["grid"] = {axis.name: _axis(axis) for axis in splitter.grid.axes}
        found["derive"] = {one.name: one.expression for one in splitter.grid.derived}
        found["filter"] = splitter.grid.filter
    elif kind == "files":
        by_site = type(splitter.files).GROUPING_BY_SITE
        found["files"] = _told(
            {
                "per_job": splitter.files.files_per_job or 1,
                "group_by": splitter.files.group_key,
                "by_site": splitter.files.grouping == by_site,
                "bytes_per_job": f"{splitter.files.bytes_per_job}B" if splitter.files.bytes_per_job else "",
            }
        )
    else:
        found["args"] = [_arguments(one) for one in splitter.args.sets]
    return _told(found)


def _arguments(one: Any) -> dict[str, str] | list[str]:
    return dict(one.parameters) or list(one.arguments)


def _axis(axis: Any) -> Any:
    if axis.HasField("range"):
        return f"{axis.range.first}..{axis.range.last}..{axis.range.step or 1}"
    return [getattr(value, value.WhichOneof("kind")) for value in axis.values]
