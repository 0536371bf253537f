"""Whether storage elements hold what the catalogue says: comparisons, incidents, care, probes."""

from collections.abc import Callable, Sequence
from typing import Any

from khomas.client.errors import UsageError
from khomas.client.parts import chunks
from khomas.client.services import Calls

_AREA = "storage.integrity"
_FINAL_FROM = 20
# Somebody has to decide.
_HELD = 3


class Integrity(Calls):
    """Comparisons of storage elements with the catalogue, what they found, and repairs."""

    async def compare(
        self, storage_element: str, mode: str = "QUICK", *, max_lost_percent: float = 0, grace_seconds: int = -1
    ) -> Any:
        """Begin a comparison: QUICK (names and sizes), CHECKSUM (as told), or FULL (every byte); returns it."""
        from khomas.api.storage.v1 import integrity_service_pb2 as pb
        from khomas.api.storage.v1.reconciliation_pb2 import Reconciliation

        wanted = Reconciliation(storage_element=storage_element, max_lost_percent=max_lost_percent)
        wanted.mode = Reconciliation.Mode.Value(f"MODE_{mode.upper()}")
        if grace_seconds >= 0:
            wanted.grace.FromSeconds(grace_seconds)
        return await self.call(_AREA, "CreateReconciliation", pb.CreateReconciliationRequest(reconciliation=wanted))

    async def comparison(self, name: str) -> Any:
        """Read a comparison by name or id."""
        from khomas.api.storage.v1 import integrity_service_pb2 as pb

        return await self.call(_AREA, "GetReconciliation", pb.GetReconciliationRequest(name=_full(name)))

    async def wait_for_comparison(
        self, name: str, *, timeout: float | None = None, on_look: Callable[[Any], None] | None = None
    ) -> Any:
        """Wait until a comparison is over, or somebody has to decide."""
        return await self.until(
            lambda: self.comparison(name),
            lambda one: one.state >= _FINAL_FROM or one.state == _HELD,
            timeout=timeout,
            on_look=on_look,
        )

    async def comparisons(self, filter_text: str = "") -> list[Any]:
        """List comparisons, newest first."""
        from khomas.api.storage.v1 import integrity_service_pb2 as pb

        request = pb.ListReconciliationsRequest(filter=filter_text, page_size=1000)
        return await self.pages(_AREA, "ListReconciliations", request, "reconciliations")

    async def release_comparison(self, name: str, reason: str) -> Any:
        """Let a comparison go on though much seems lost: it is."""
        from khomas.api.storage.v1 import integrity_service_pb2 as pb

        request = pb.ReleaseReconciliationRequest(name=_full(name), reason=reason)
        return await self.call(_AREA, "ReleaseReconciliation", request)

    async def cancel_comparison(self, name: str) -> Any:
        """Take a comparison back."""
        from khomas.api.storage.v1 import integrity_service_pb2 as pb

        return await self.call(_AREA, "CancelReconciliation", pb.CancelReconciliationRequest(name=_full(name)))

    async def explain_comparison(self, name: str) -> Any:
        """Say why a comparison waits, is held or failed."""
        from khomas.api.storage.v1 import integrity_service_pb2 as pb

        request = pb.ExplainReconciliationRequest(name=_full(name))
        return await self.call(_AREA, "ExplainReconciliation", request)

    async def incidents(self, filter_text: str = "") -> list[Any]:
        """Search incidents, newest first."""
        from khomas.api.storage.v1 import integrity_service_pb2 as pb

        request = pb.ListIncidentsRequest(filter=filter_text, page_size=1000)
        return await self.pages(_AREA, "ListIncidents", request, "incidents")

    async def incident(self, name: str) -> Any:
        """Read an incident by name or id."""
        from khomas.api.storage.v1 import integrity_service_pb2 as pb

        return await self.call(_AREA, "GetIncident", pb.GetIncidentRequest(name=_full(name, "incidents")))

    async def explain_incident(self, name: str) -> Any:
        """Say what is wrong, and who can do what."""
        from khomas.api.storage.v1 import integrity_service_pb2 as pb

        return await self.call(_AREA, "ExplainIncident", pb.ExplainIncidentRequest(name=_full(name, "incidents")))

    async def apply_repairs(
        self,
        names: Sequence[str] = (),
        *,
        filter_text: str = "",
        repair: str = "UNSPECIFIED",
        reason: str,
        validate_only: bool = False,
    ) -> int:
        """Accept repairs of open incidents, by name or by filter; returns how many."""
        from khomas.api.storage.v1 import integrity_service_pb2 as pb
        from khomas.api.storage.v1.incident_pb2 import Repair

        if bool(names) == bool(filter_text):
            raise UsageError("name incidents, or give a filter")
        wanted = Repair.Value(f"REPAIR_{repair.upper()}")
        accepted = 0
        for part in chunks([_full(name, "incidents") for name in names]) if names else [[]]:
            request = pb.ApplyRepairsRequest(
                names=part, filter=filter_text, repair=wanted, reason=reason, validate_only=validate_only
            )
            accepted += (await self.call(_AREA, "ApplyRepairs", request)).accepted
        return accepted

    async def wait_for_repairs(
        self, names: Sequence[str], *, timeout: float | None = None, on_look: Callable[[int], None] | None = None
    ) -> list[Any]:
        """Wait until the repairs of incidents are over. Returns the incidents."""
        from khomas.api.storage.v1.incident_pb2 import Incident

        async def read() -> list[Any]:
            return [await self.incident(name) for name in names]

        def under_way(incidents: Sequence[Any]) -> int:
            return sum(one.state == Incident.STATE_REPAIRING for one in incidents)

        return list(
            await self.until(
                read,
                lambda found: not under_way(found),
                timeout=timeout,
                on_look=lambda found: on_look(under_way(found)) if on_look else None,
            )
        )

    async def care(self, storage_element: str) -> Any:
        """Read how a storage element is looked after."""
        from khomas.api.storage.v1 import integrity_service_pb2 as pb

        return await self.call(_AREA, "GetCarePolicy", pb.GetCarePolicyRequest(name=_care(storage_element)))

    async def update_care(self, policy: Any, fields: Sequence[str]) -> Any:
        """Change fields of a CarePolicy message that names its storage element."""
        from khomas.api.storage.v1 import integrity_service_pb2 as pb

        request = pb.UpdateCarePolicyRequest(care_policy=policy)
        request.update_mask.paths.extend(fields)
        return await self.call(_AREA, "UpdateCarePolicy", request)

    async def probes(self, storage_element: str = "") -> list[Any]:
        """Return the newest probes of storage elements and of the ways between them."""
        from khomas.api.storage.v1 import integrity_service_pb2 as pb

        request = pb.ListProbesRequest(storage_element=storage_element)
        return list((await self.call(_AREA, "ListProbes", request)).probes)

    async def explain_deletion(self, name: str) -> Any:
        """Say why the deletion of a replica waits."""
        from khomas.api.storage.v1 import integrity_service_pb2 as pb

        return await self.call(_AREA, "ExplainDeletion", pb.ExplainDeletionRequest(name=_full(name, "deletions")))


def _full(name: str, collection: str = "reconciliations") -> str:
    return name if name.startswith(f"{collection}/") else f"{collection}/{name}"


def _care(storage_element: str) -> str:
    return f"storageElements/{storage_element}/carePolicy"
