"""The rpcs of recalls."""

# The names of the methods are the contract's.
# ruff: noqa: N802

from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import recall_pb2
from khomas.api.storage.v1 import recall_service_pb2 as pb
from khomas.api.storage.v1.recall_service_pb2_grpc import RecallServiceServicer
from khomas.kit.boundary.call import Context
from khomas.storage.recalls.recalls import Recalls


class RecallServicer(RecallServiceServicer):
    """Implements khomas.api.storage.v1.RecallService."""

    def __init__(self, recalls: Recalls) -> None:
        self._recalls = recalls

    async def BatchCreateRecalls(
        self, request: pb.BatchCreateRecallsRequest, context: Context
    ) -> pb.BatchCreateRecallsResponse:
        return await self._recalls.create(request)

    async def GetRecall(self, request: pb.GetRecallRequest, context: Context) -> recall_pb2.Recall:
        return await self._recalls.get(request.name)

    async def ListRecalls(self, request: pb.ListRecallsRequest, context: Context) -> pb.ListRecallsResponse:
        return await self._recalls.page(request)

    async def BatchCancelRecalls(
        self, request: pb.BatchCancelRecallsRequest, context: Context
    ) -> pb.BatchCancelRecallsResponse:
        return await self._recalls.cancel(request)

    async def ExplainRecall(self, request: pb.ExplainRecallRequest, context: Context) -> explanation_pb2.Explanation:
        return await self._recalls.explain(request.name)
