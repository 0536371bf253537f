"""The rpcs of policies, drains and replicas: each reads its request, asks one thing, builds its answer."""

# The names of the methods are the contract's.
# ruff: noqa: N802

from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import drain_pb2, policy_pb2
from khomas.api.storage.v1 import placement_service_pb2 as pb
from khomas.api.storage.v1.placement_service_pb2_grpc import PlacementServiceServicer
from khomas.kit.boundary.call import Context
from khomas.storage.rules.deleting import ReplicaDeletions
from khomas.storage.rules.drain_store import Drains
from khomas.storage.rules.policies import Policies


class PlacementServicer(PlacementServiceServicer):
    """Implements khomas.api.storage.v1.PlacementService."""

    def __init__(self, policies: Policies, drains: Drains, deletions: ReplicaDeletions) -> None:
        self._policies = policies
        self._drains = drains
        self._deletions = deletions

    async def CreatePolicy(self, request: pb.CreatePolicyRequest, context: Context) -> policy_pb2.PlacementPolicy:
        return await self._policies.create(request)

    async def ListPolicies(self, request: pb.ListPoliciesRequest, context: Context) -> pb.ListPoliciesResponse:
        return await self._policies.page(request)

    async def SuspendPolicy(self, request: pb.SuspendPolicyRequest, context: Context) -> policy_pb2.PlacementPolicy:
        return await self._policies.suspend(request)

    async def DeletePolicy(self, request: pb.DeletePolicyRequest, context: Context) -> pb.DeletePolicyResponse:
        return await self._policies.delete(request)

    async def BatchDeleteReplicas(
        self, request: pb.BatchDeleteReplicasRequest, context: Context
    ) -> pb.BatchDeleteReplicasResponse:
        return await self._deletions.delete(request)

    async def DrainStorageElement(self, request: pb.DrainStorageElementRequest, context: Context) -> drain_pb2.Drain:
        return await self._drains.begin(request)

    async def CancelDrain(self, request: pb.CancelDrainRequest, context: Context) -> drain_pb2.Drain:
        return await self._drains.cancel(request)

    async def GetDrain(self, request: pb.GetDrainRequest, context: Context) -> drain_pb2.Drain:
        return await self._drains.get(request.name)

    async def ExplainDrain(self, request: pb.ExplainDrainRequest, context: Context) -> explanation_pb2.Explanation:
        return await self._drains.explain(request.name)
