"""What an ARC CE is told about a job: a description in ADL, and one script that holds all the rest."""

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree

from khomas.scheduler.backends.arc.settings import ArcSettings
from khomas.scheduler.backends.interface import SubmitItem
from khomas.scheduler.wrapper import JOB_WRAPPER

# A job waits in the CE until this file has arrived.
SCRIPT = "khomas.sh"
# Makes the wrapper end the job, whatever the batch system does with its signals.
CANCEL = "cancel"
OPTIONS = frozenset({"priority", "runtime_environments"})
_ADL = "http://www.eu-emi.eu/es/2010/12/adl"
_NORDUGRID = "http://www.nordugrid.org/es/2011/12/nordugrid-adl"
_SCRIPT = """#!/bin/sh
# Runs in the folder given as argument, else where it is.
if [ $# -gt 0 ]; then mkdir -p "$1" && cd "$1" || exit 2; fi
cat > job.json <<'END OF MANIFEST'
{manifest}
END OF MANIFEST
python3 -c 'import base64, sys, zlib
sys.stdout.buffer.write(zlib.decompress(base64.b64decode(sys.stdin.read())))' > khomas_job.py <<'END OF WRAPPER'
{wrapper}
END OF WRAPPER
[ ! -e {cancel} ] || exit 130
python3 khomas_job.py run . &
wrapper=$!
trap 'kill -TERM $wrapper' TERM INT HUP
# Some batch systems kill without a signal that we could see; the file can always be seen.
(while sleep 1; do [ ! -e {cancel} ] || kill -TERM $wrapper; done) > /dev/null 2>&1 &
watch=$!
wait $wrapper
code=$?
while kill -0 $wrapper 2> /dev/null; do wait $wrapper; code=$?; done
kill -KILL $watch
exit $code
"""


def script(manifest: Mapping[str, Any]) -> bytes:
    """The script of a job: its manifest and the wrapper in one file, so that one transfer brings all."""
    text = _SCRIPT.format(manifest=json.dumps(manifest, sort_keys=True), wrapper=_wrapper(), cancel=CANCEL)
    return text.encode()


@lru_cache(maxsize=1)
def _wrapper() -> str:
    packed = base64.b64encode(zlib.compress(JOB_WRAPPER.read_bytes(), 9)).decode()
    return "\n".join(packed[start : start + 120] for start in range(0, len(packed), 120))


def descriptions(items: Sequence[SubmitItem], settings: ArcSettings) -> bytes:
    """Many jobs in one document."""
    root = ElementTree.Element("ActivityDescriptions", {"xmlns": _ADL, "xmlns:nordugrid-adl": _NORDUGRID})
    for item in items:
        _describe(root, item, settings)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _describe(root: ElementTree.Element, item: SubmitItem, settings: ArcSettings) -> None:
    job = ElementTree.SubElement(root, "ActivityDescription")
    _add(_add(job, "ActivityIdentification"), "Name", item.token)
    application = _add(job, "Application")
    executable = _add(application, "Executable")
    _add(executable, "Path", "/bin/sh")
    _add(executable, "Argument", SCRIPT)
    _add(application, "Output", "wrapper.log")
    _add(application, "Error", "wrapper.log")
    if "priority" in item.native:
        _add(application, "nordugrid-adl:Priority", str(item.native["priority"]))
    _resources(_add(job, "Resources"), item, settings)
    staging = _add(job, "DataStaging")
    _add(_add(staging, "InputFile"), "Name", SCRIPT)
    # All files stay in the job's folder until we have it cleaned.
    _add(_add(staging, "OutputFile"), "Name", "/")


def _resources(parent: ElementTree.Element, item: SubmitItem, settings: ArcSettings) -> None:
    needs = item.manifest.get("resources", {})
    for name in item.native.get("runtime_environments", ()):
        _add(_add(parent, "RuntimeEnvironment"), "Name", str(name))
    if memory := needs.get("memory_bytes"):
        _add(parent, "IndividualPhysicalMemory", str(int(memory) + settings.extra_memory_bytes))
    if cpu := needs.get("cpu_time_s"):
        _add(parent, "TotalCPUTime", str(math.ceil(cpu + settings.extra_wall_time_s)))
    if wall := needs.get("wall_time_s"):
        _add(parent, "WallTime", str(math.ceil(wall + settings.extra_wall_time_s)))
    cores = max(1, math.ceil((needs.get("cpu_milli") or 1000) / 1000))
    slots = _add(parent, "SlotRequirement")
    _add(slots, "NumberOfSlots", str(cores))
    _add(slots, "SlotsPerHost", str(cores))
    if queue := item.queue or settings.queue:
        _add(parent, "QueueName", queue)


def _add(parent: ElementTree.Element, name: str, text: str | None = None) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, name)
    child.text = text
    return child


def refusal(item: SubmitItem) -> str:
    """Say why this cannot be handed over; empty when it can."""
    if not item.token or len(item.token) > 64 or not item.token.replace("-", "").isalnum() or not item.token.isascii():
        return f"{item.token!r} is no token: 1 to 64 letters, digits and '-'"
    if unknown := item.native.keys() - OPTIONS:
        return f"unknown options of arc: {', '.join(sorted(unknown))}; there are {', '.join(sorted(OPTIONS))}"
    names = item.native.get("runtime_environments", [])
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        return "runtime_environments must be a list of names"
    priority = item.native.get("priority", 50)
    if isinstance(priority, bool) or not isinstance(priority, int | float) or not 0 <= priority <= 100:
        return "priority must be a number from 0 to 100"
    return ""
