"""Rules of the API of Kubernetes that the stand-in keeps: names, labels, selectors, patches."""

import re
from collections.abc import Mapping
from typing import Any

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"|[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_REQUIREMENT = re.compile(r"(!?)([\w./-]+)(?:=(.*)| in \((.*)\))?")
_SECRET_BYTES = 1 << 20
Object = dict[str, Any]


def wrong(kind: str, item: Object) -> str:
    """Why an object is not valid; empty when it is."""
    name, labels = item["metadata"]["name"], item["metadata"].get("labels", {})
    if not _NAME.fullmatch(name) or not all(_LABEL.fullmatch(value) for value in labels.values()):
        return f'{kind} "{name}" is invalid: metadata: Invalid value'
    if kind == "secrets" and sum(map(len, item.get("data", {}).values())) * 3 // 4 > _SECRET_BYTES:
        return f'Secret "{name}" is invalid: data: Too long: must have at most {_SECRET_BYTES} bytes'
    return _wrong_pod(item["spec"]["template"]["spec"]) if kind == "jobs" else ""


def _wrong_pod(template: Object) -> str:
    if template.get("restartPolicy") not in ("Never", "OnFailure"):
        return "spec.template.spec.restartPolicy: Required value"
    container = template["containers"][0]
    if {mount["name"] for mount in container["volumeMounts"]} - {volume["name"] for volume in template["volumes"]}:
        return "spec.template.spec.containers[0].volumeMounts[0].name: Not found"
    return ""


def finished(job: Object) -> bool:
    """Whether a Job has ended."""
    return bool(job["status"].get("conditions"))


def merged(item: Any, patch: Any) -> Any:
    """A JSON merge patch."""
    if not isinstance(patch, dict) or not isinstance(item, dict):
        return patch
    whole = {key: merged(item.get(key), value) for key, value in patch.items() if value is not None}
    return {**{key: value for key, value in item.items() if key not in patch}, **whole}


def selected(metadata: Mapping[str, Any], selector: str) -> bool:
    """Whether an object has what a selector of labels asks for."""
    return all(_fulfilled(metadata.get("labels", {}), one) for one in re.split(r",(?![^(]*\))", selector) if one)


def _fulfilled(labels: Mapping[str, str], requirement: str) -> bool:
    found = _REQUIREMENT.fullmatch(requirement)
    if found is None:
        raise ValueError(f"unable to parse requirement: {requirement}")
    negated, key, one, some = found.groups()
    if one is None and some is None:
        return (key in labels) != bool(negated)
    return labels.get(key) in ([one] if one is not None else some.split(","))
