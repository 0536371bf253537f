"""The rpcs: each reads its request, asks one thing, builds its answer."""

# The contract gives the methods their names.
# ruff: noqa: N802

from collections.abc import AsyncIterator
from dataclasses import dataclass

from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
from khomas.api.bookkeeping.v1 import production_pb2, provenance_pb2, run_pb2
from khomas.api.bookkeeping.v1.bookkeeping_service_pb2_grpc import BookkeepingServiceServicer
from khomas.api.common.v1 import event_pb2, explanation_pb2
from khomas.bookkeeping.activities import Activities
from khomas.bookkeeping.cells import Cells
from khomas.bookkeeping.control import Control
from khomas.bookkeeping.engine import Engine
from khomas.bookkeeping.explaining import Explaining
from khomas.bookkeeping.items import Items
from khomas.bookkeeping.productions import Productions
from khomas.bookkeeping.runs import Runs
from khomas.bookkeeping.trace.walk import Tracing
from khomas.kit.boundary.call import Context
from khomas.kit.events import EventLog


@dataclass(frozen=True, slots=True)
class Parts:
    """What the rpcs are made of."""

    productions: Productions
    control: Control
    cells: Cells
    items: Items
    activities: Activities
    explaining: Explaining
    runs: Runs
    tracing: Tracing
    engine: Engine
    log: EventLog


class BookkeepingServicer(BookkeepingServiceServicer):
    """Implements khomas.api.bookkeeping.v1.BookkeepingService."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def CreateProduction(
        self, request: pb.CreateProductionRequest, context: Context
    ) -> pb.CreateProductionResponse:
        answer = await self._parts.productions.create(request)
        self._parts.engine.wake()
        return answer

    async def GetProduction(self, request: pb.GetProductionRequest, context: Context) -> production_pb2.Production:
        return await self._parts.productions.get(request.name)

    async def ListProductions(self, request: pb.ListProductionsRequest, context: Context) -> pb.ListProductionsResponse:
        return await self._parts.productions.page(request)

    async def UpdateProduction(
        self, request: pb.UpdateProductionRequest, context: Context
    ) -> production_pb2.Production:
        answer = await self._parts.control.update(request)
        self._parts.engine.wake()
        return answer

    async def PauseProduction(self, request: pb.PauseProductionRequest, context: Context) -> production_pb2.Production:
        answer = await self._parts.control.pause(request)
        self._parts.engine.wake()
        return answer

    async def ResumeProduction(
        self, request: pb.ResumeProductionRequest, context: Context
    ) -> production_pb2.Production:
        answer = await self._parts.control.resume(request)
        self._parts.engine.wake()
        return answer

    async def CancelProduction(
        self, request: pb.CancelProductionRequest, context: Context
    ) -> production_pb2.Production:
        answer = await self._parts.control.cancel(request)
        self._parts.engine.wake()
        return answer

    async def FlushStage(self, request: pb.FlushStageRequest, context: Context) -> production_pb2.Production:
        answer = await self._parts.control.flush(request)
        self._parts.engine.wake()
        return answer

    async def ListCells(self, request: pb.ListCellsRequest, context: Context) -> pb.ListCellsResponse:
        return await self._parts.cells.page(request)

    async def ListWorkItems(self, request: pb.ListWorkItemsRequest, context: Context) -> pb.ListWorkItemsResponse:
        return await self._parts.items.page(request)

    async def ExplainProduction(
        self, request: pb.ExplainProductionRequest, context: Context
    ) -> explanation_pb2.Explanation:
        return await self._parts.explaining.explain(request.name)

    async def ExplainWorkItem(
        self, request: pb.ExplainWorkItemRequest, context: Context
    ) -> explanation_pb2.Explanation:
        return await self._parts.items.explain(request.name)

    async def BatchCreateRuns(self, request: pb.BatchCreateRunsRequest, context: Context) -> pb.BatchCreateRunsResponse:
        return await self._parts.runs.create(request)

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> run_pb2.Run:
        return await self._parts.runs.get(request.name)

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        return await self._parts.runs.page(request)

    async def UpdateRun(self, request: pb.UpdateRunRequest, context: Context) -> run_pb2.Run:
        return await self._parts.runs.update(request)

    async def ListActivities(self, request: pb.ListActivitiesRequest, context: Context) -> pb.ListActivitiesResponse:
        return await self._parts.activities.page(request)

    async def GetTrace(self, request: pb.GetTraceRequest, context: Context) -> provenance_pb2.Trace:
        return await self._parts.tracing.trace(request)

    def WatchEvents(
        self, request: event_pb2.WatchEventsRequest, context: Context
    ) -> AsyncIterator[event_pb2.WatchEventsResponse]:
        return self._parts.log.watch(request)
