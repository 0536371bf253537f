"""A job's spec back to the document that makes it."""

from typing import Any

from khomas.client.files import DATASETS


def document_of_spec(spec: Any) -> dict[str, Any]:
    """Return a job document; submitted again it gives the same spec.

    Sandbox files are named by their SHA-256, for the local files may be gone.
    """
    command = spec.command
    document: dict[str, Any] = {
        "name": spec.display_name,
        "run": [command.executable, *command.arguments],
        "env": dict(command.env),
        "inherit_env": command.inherit_env,
        "pre": command.pre_command,
        "post": command.post_command,
        "success_exit_codes": list(command.success_exit_codes),
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
    }
    if (split := _split(spec.splitter)) is not None:
        document["split"] = split
    return {key: value for key, value in document.items() if value not in ("", [], {}, 0, False, None)}


def _resources(resources: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if resources.cpu_milli:
        found["cpus"] = resources.cpu_milli / 1000
    for key, field in (("memory", "memory_bytes"), ("disk", "disk_bytes")):
        if amount := getattr(resources, field):
            found[key] = f"{amount}B"
    for key, field in (("wall", "wall_time"), ("cpu_time", "cpu_time")):
        if resources.HasField(field):
            found[key] = f"{getattr(resources, field).ToTimedelta().total_seconds():g}s"
    return found


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
    }
    if one.HasField("fits"):
        found["fits"] = {"hdus": list(one.fits.hdus), "tables": list(one.fits.tables)}
    return {key: value for key, value in found.items() if value not in ("", [], {}, 0)}


def _split(splitter: Any) -> dict[str, Any] | None:
    kind = splitter.WhichOneof("kind")
    if kind is None:
        return None
    found: dict[str, Any] = {"max_running": splitter.max_running} if splitter.max_running else {}
    if kind == "count":
        found["count"] = splitter.count.count
    elif kind == "grid":
        found["grid"] = {axis.name: _axis(axis) for axis in splitter.grid.axes}
        found["derive"] = {one.name: one.expression for one in splitter.grid.derived}
        found["filter"] = splitter.grid.filter
    elif kind == "files":
        found["files"] = {"per_job": splitter.files.files_per_job or 1, "group_by": splitter.files.group_key}
    else:
        found["args"] = [dict(one.parameters) or list(one.arguments) for one in splitter.args.sets]
    return {key: value for key, value in found.items() if value not in ("", {})}


def _axis(axis: Any) -> Any:
    if axis.HasField("range"):
        return f"{axis.range.first}..{axis.range.last}..{axis.range.step or 1}"
    return [getattr(value, value.WhichOneof("kind")) for value in axis.values]
