"""What FTS3 is told and what it tells: jobs as JSON, and the states of their files in our words."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from khomas.storage.executors.interface import Order, Phase, Standing

log = logging.getLogger(__name__)

# The states of files without those of QoS transitions, which nobody asks for here.
PHASES: Final[Mapping[str, Phase]] = {
    "SUBMITTED": Phase.WAITING,
    "TOKEN_PREP": Phase.WAITING,
    "STAGING": Phase.WAITING,
    "ON_HOLD": Phase.WAITING,
    "ON_HOLD_STAGING": Phase.WAITING,
    "FORCE_START": Phase.WAITING,
    "READY": Phase.WAITING,
    "STARTED": Phase.RUNNING,
    "ACTIVE": Phase.RUNNING,
    "ARCHIVING": Phase.RUNNING,
    "FINISHED": Phase.DONE,
    "FAILED": Phase.FAILED,
    "NOT_USED": Phase.FAILED,
    "CANCELED": Phase.CANCELLED,
}
# FTS3 has the priorities 1 to 5, and 3 is normal.
_NORMAL: Final = 3
_STEP: Final = 25


def job(orders: Sequence[Order], verify_checksum: str) -> dict[str, Any]:
    """Return a job with a file for each order. It does not try again by itself: that is decided here."""
    return {
        "files": [
            {
                "sources": [one.source_url],
                "destinations": [one.destination_url],
                "filesize": one.wanted.size_bytes,
                "metadata": {"transfer": one.uid},
                **({"checksum": f"ADLER32:{one.wanted.adler32}"} if one.wanted.adler32 else {}),
            }
            for one in orders
        ],
        "params": {
            "verify_checksum": verify_checksum,
            "overwrite": False,
            "retry": -1,
            "priority": max(1, min(5, _NORMAL + max(one.priority for one in orders) // _STEP)),
            "job_metadata": {"issuer": "khomas"},
        },
    }


def standings(files: Sequence[Mapping[str, Any]]) -> dict[str, Standing]:
    """Return how far the files of a job are, by transfer."""
    return {uid: _standing(one) for one in files if (uid := _transfer(one))}


def _transfer(file: Mapping[str, Any]) -> str:
    metadata = file.get("file_metadata")
    return str(metadata.get("transfer", "")) if isinstance(metadata, Mapping) else ""


def _standing(file: Mapping[str, Any]) -> Standing:
    state = str(file.get("file_state", ""))
    phase = PHASES.get(state)
    if phase is None:
        log.warning("fts3.unknown_state", extra={"state": state})
        phase = Phase.WAITING
    return Standing(phase, int(file.get("transferred") or 0), str(file.get("reason") or ""))
