"""The rpcs about integrity: each reads its request, asks one thing, builds its answer."""

# The names of the methods are the contract's.
# ruff: noqa: N802

from dataclasses import dataclass

from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import care_pb2, incident_pb2, reconciliation_pb2
from khomas.api.storage.v1 import integrity_service_pb2 as pb
from khomas.api.storage.v1.integrity_service_pb2_grpc import IntegrityServiceServicer
from khomas.kit.boundary.call import Context
from khomas.storage.probes.probing import Probing
from khomas.storage.reconciling.deletion_reasons import DeletionReasons
from khomas.storage.reconciling.incidents import Incidents
from khomas.storage.reconciling.policies import Policies
from khomas.storage.reconciling.runs import Runs


@dataclass(frozen=True, slots=True)
class IntegrityParts:
    """What the rpcs are made of."""

    runs: Runs
    incidents: Incidents
    policies: Policies
    probing: Probing
    deletions: DeletionReasons


class IntegrityServicer(IntegrityServiceServicer):
    """Implements khomas.api.storage.v1.IntegrityService."""

    def __init__(self, parts: IntegrityParts) -> None:
        self._parts = parts

    async def CreateReconciliation(
        self, request: pb.CreateReconciliationRequest, context: Context
    ) -> reconciliation_pb2.Reconciliation:
        return await self._parts.runs.create(request)

    async def GetReconciliation(
        self, request: pb.GetReconciliationRequest, context: Context
    ) -> reconciliation_pb2.Reconciliation:
        return await self._parts.runs.get(request.name)

    async def ListReconciliations(
        self, request: pb.ListReconciliationsRequest, context: Context
    ) -> pb.ListReconciliationsResponse:
        return await self._parts.runs.page(request)

    async def ReleaseReconciliation(
        self, request: pb.ReleaseReconciliationRequest, context: Context
    ) -> reconciliation_pb2.Reconciliation:
        return await self._parts.runs.release(request)

    async def CancelReconciliation(
        self, request: pb.CancelReconciliationRequest, context: Context
    ) -> reconciliation_pb2.Reconciliation:
        return await self._parts.runs.cancel(request)

    async def ExplainReconciliation(
        self, request: pb.ExplainReconciliationRequest, context: Context
    ) -> explanation_pb2.Explanation:
        return await self._parts.runs.explain(request.name)

    async def GetIncident(self, request: pb.GetIncidentRequest, context: Context) -> incident_pb2.Incident:
        return await self._parts.incidents.get(request.name)

    async def ListIncidents(self, request: pb.ListIncidentsRequest, context: Context) -> pb.ListIncidentsResponse:
        return await self._parts.incidents.page(request)

    async def ExplainIncident(
        self, request: pb.ExplainIncidentRequest, context: Context
    ) -> explanation_pb2.Explanation:
        return await self._parts.incidents.explain(request.name)

    async def ApplyRepairs(self, request: pb.ApplyRepairsRequest, context: Context) -> pb.ApplyRepairsResponse:
        return await self._parts.incidents.apply(request)

    async def GetCarePolicy(self, request: pb.GetCarePolicyRequest, context: Context) -> care_pb2.CarePolicy:
        return await self._parts.policies.get(request.name)

    async def UpdateCarePolicy(self, request: pb.UpdateCarePolicyRequest, context: Context) -> care_pb2.CarePolicy:
        return await self._parts.policies.update(request)

    async def ListProbes(self, request: pb.ListProbesRequest, context: Context) -> pb.ListProbesResponse:
        return await self._parts.probing.page(request)

    async def ExplainDeletion(
        self, request: pb.ExplainDeletionRequest, context: Context
    ) -> explanation_pb2.Explanation:
        return await self._parts.deletions.explain(request.name)
