"""The rpcs of rules: each reads its request, asks one thing, builds its answer."""

# The names of the methods are the contract's.
# ruff: noqa: N802

from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import rule_pb2
from khomas.api.storage.v1 import rule_service_pb2 as pb
from khomas.api.storage.v1.rule_service_pb2_grpc import RuleServiceServicer
from khomas.kit.boundary.call import Context
from khomas.storage.rules.preview import Previews
from khomas.storage.rules.store import Rules


class RuleServicer(RuleServiceServicer):
    """Implements khomas.api.storage.v1.RuleService."""

    def __init__(self, rules: Rules, previews: Previews) -> None:
        self._rules = rules
        self._previews = previews

    async def CreateRule(self, request: pb.CreateRuleRequest, context: Context) -> rule_pb2.ReplicationRule:
        return await self._rules.create(request)

    async def PreviewRule(self, request: pb.PreviewRuleRequest, context: Context) -> pb.PreviewRuleResponse:
        return await self._previews.preview(request.rule)

    async def GetRule(self, request: pb.GetRuleRequest, context: Context) -> rule_pb2.ReplicationRule:
        return await self._rules.get(request.name)

    async def ListRules(self, request: pb.ListRulesRequest, context: Context) -> pb.ListRulesResponse:
        return await self._rules.page(request)

    async def UpdateRule(self, request: pb.UpdateRuleRequest, context: Context) -> rule_pb2.ReplicationRule:
        return await self._rules.update(request)

    async def DeleteRule(self, request: pb.DeleteRuleRequest, context: Context) -> pb.DeleteRuleResponse:
        return await self._rules.delete(request)

    async def ExplainRule(self, request: pb.ExplainRuleRequest, context: Context) -> explanation_pb2.Explanation:
        return await self._rules.explain(request.name)

    async def ListRuleCopies(self, request: pb.ListRuleCopiesRequest, context: Context) -> pb.ListRuleCopiesResponse:
        return await self._rules.copies(request)
