"""Where copies are wanted: rules, policies, and StorageElements that are being emptied."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from khomas.client.errors import UsageError
from khomas.client.parts import chunks
from khomas.client.services import Calls
from khomas.client.specs import dataset_name

_RULES, _PLACEMENT = "storage.rule", "storage.placement"
_PREFIX = "replicationRules/"
_FINAL_FROM = 20


class Rules(Calls):
    """Replication rules."""

    async def create(self, expression: str, copies: int = 1, **wanted: Any) -> Any:
        """Want copies of a dataset, or of the files below a directory that match a filter, on StorageElements.

        Further fields of the rule go by name: dataset, directory, filter, lifetime, priority, together, share.
        """
        from khomas.api.storage.v1 import rule_service_pb2 as pb

        request = pb.CreateRuleRequest(rule=rule_of(expression, copies, **wanted))
        return await self.call(_RULES, "CreateRule", request)

    async def preview(self, expression: str, copies: int = 1, **wanted: Any) -> Any:
        """Say what a rule would do, without making it; returns the response message."""
        from khomas.api.storage.v1 import rule_service_pb2 as pb

        return await self.call(_RULES, "PreviewRule", pb.PreviewRuleRequest(rule=rule_of(expression, copies, **wanted)))

    async def get(self, name: str) -> Any:
        """Read a rule by name or id."""
        from khomas.api.storage.v1 import rule_service_pb2 as pb

        return await self.call(_RULES, "GetRule", pb.GetRuleRequest(name=rule_name(name)))

    async def all(self, filter_text: str = "") -> list[Any]:
        """List rules."""
        from khomas.api.storage.v1 import rule_service_pb2 as pb

        return await self.pages(_RULES, "ListRules", pb.ListRulesRequest(filter=filter_text, page_size=1000), "rules")

    async def copies(self, name: str, filter_text: str = "") -> list[Any]:
        """List the copies that a rule wants, file by file."""
        from khomas.api.storage.v1 import rule_service_pb2 as pb

        request = pb.ListRuleCopiesRequest(name=rule_name(name), filter=filter_text, page_size=10_000)
        return await self.pages(_RULES, "ListRuleCopies", request, "copies")

    async def update(self, name: str, **changes: Any) -> Any:
        """Change copies, priority, lifetime, share, suspended or description of a rule."""
        from khomas.api.storage.v1 import rule_service_pb2 as pb
        from khomas.api.storage.v1.rule_pb2 import ReplicationRule

        if not changes:
            raise UsageError("say what is to change")
        rule = ReplicationRule(name=rule_name(name))
        request = pb.UpdateRuleRequest(rule=_filled(rule, changes))
        request.update_mask.paths.extend(sorted(changes))
        return await self.call(_RULES, "UpdateRule", request)

    async def delete(self, name: str) -> Any:
        """End a rule; its copies stay until somebody needs the space."""
        from khomas.api.storage.v1 import rule_service_pb2 as pb

        return await self.call(_RULES, "DeleteRule", pb.DeleteRuleRequest(name=rule_name(name)))

    async def explain(self, name: str) -> Any:
        """Say why a rule is not satisfied."""
        from khomas.api.storage.v1 import rule_service_pb2 as pb

        return await self.call(_RULES, "ExplainRule", pb.ExplainRuleRequest(name=rule_name(name)))

    async def wait(
        self, name: str, *, timeout: float | None = None, on_look: Callable[[Any], None] | None = None
    ) -> Any:
        """Wait until all copies of a rule are there, or some cannot be made."""
        from khomas.api.storage.v1.rule_pb2 import ReplicationRule

        return await self.until(
            lambda: self.get(name),
            lambda rule: rule.state != ReplicationRule.STATE_REPLICATING,
            timeout=timeout,
            on_look=on_look,
        )


class Placement(Calls):
    """Policies, drains, and the deletion of single replicas."""

    async def create_policy(self, name: str, dataset_pattern: str, expression: str, copies: int, **wanted: Any) -> Any:
        """Have every new dataset that matches get a rule; `existing` = also those that are there."""
        from khomas.api.storage.v1 import placement_service_pb2 as pb
        from khomas.api.storage.v1.policy_pb2 import PlacementPolicy

        own = {key: wanted.pop(key) for key in ("filter", "existing", "description") if key in wanted}
        policy = PlacementPolicy(name=_with("policies/", name), dataset_pattern=dataset_name(dataset_pattern), **own)
        policy.rule.CopyFrom(rule_of(expression, copies, **wanted))
        return await self.call(_PLACEMENT, "CreatePolicy", pb.CreatePolicyRequest(policy=policy))

    async def policies(self) -> list[Any]:
        """List policies."""
        from khomas.api.storage.v1 import placement_service_pb2 as pb

        return await self.pages(_PLACEMENT, "ListPolicies", pb.ListPoliciesRequest(), "policies")

    async def suspend_policy(self, name: str, *, suspended: bool = True) -> Any:
        """Make no rules by a policy for a while, or again."""
        from khomas.api.storage.v1 import placement_service_pb2 as pb

        request = pb.SuspendPolicyRequest(name=_with("policies/", name), suspended=suspended)
        return await self.call(_PLACEMENT, "SuspendPolicy", request)

    async def delete_policy(self, name: str) -> Any:
        """Forget a policy; the rules that it has made live on."""
        from khomas.api.storage.v1 import placement_service_pb2 as pb

        return await self.call(_PLACEMENT, "DeletePolicy", pb.DeletePolicyRequest(name=_with("policies/", name)))

    async def delete_replicas(self, storage_element: str, files: Sequence[str]) -> list[Any]:
        """Delete copies of files on a StorageElement; returns a status each, code 0 = it is going to be deleted."""
        from khomas.api.storage.v1 import placement_service_pb2 as pb

        results: list[Any] = []
        for part in chunks(files):
            request = pb.BatchDeleteReplicasRequest()
            for file in part:
                request.replicas.add(file=file, storage_element=storage_element)
            results += (await self.call(_PLACEMENT, "BatchDeleteReplicas", request)).results
        return results

    async def update_element(self, storage_element: str, **changes: Any) -> Any:
        """Change site, labels, weight, capacity_bytes, high_watermark, low_watermark, … of a StorageElement."""
        from khomas.api.storage.v1 import storage_service_pb2 as pb
        from khomas.api.storage.v1.storage_element_pb2 import StorageElement

        if not changes:
            raise UsageError("say what is to change")
        found = await self.call(
            "storage", "GetStorageElement", pb.GetStorageElementRequest(name=_with("storageElements/", storage_element))
        )
        # The rules for whole messages hold for the fields that stay, too.
        wanted = StorageElement(name=found.name, media=found.media, access_points=found.access_points)
        labels = changes.pop("labels", None)
        request = pb.UpdateStorageElementRequest(storage_element=_filled(wanted, changes))
        request.update_mask.paths.extend(sorted(changes))
        if labels is not None:
            request.storage_element.labels.update({**found.labels, **labels})
            for name in [name for name, value in labels.items() if not value]:
                del request.storage_element.labels[name]
            request.update_mask.paths.append("labels")
        return await self.call("storage", "UpdateStorageElement", request)

    async def drain(self, storage_element: str, *, decommission: bool = False) -> Any:
        """Empty a StorageElement; with `decommission` it is forgotten at the end."""
        from khomas.api.storage.v1 import placement_service_pb2 as pb

        request = pb.DrainStorageElementRequest(
            name=_with("storageElements/", storage_element), decommission=decommission
        )
        return await self.call(_PLACEMENT, "DrainStorageElement", request)

    async def drained(self, storage_element: str) -> Any:
        """Read how far a drain is."""
        from khomas.api.storage.v1 import placement_service_pb2 as pb

        return await self.call(_PLACEMENT, "GetDrain", pb.GetDrainRequest(name=_with("drains/", storage_element)))

    async def wait_for_drain(
        self, storage_element: str, *, timeout: float | None = None, on_look: Callable[[Any], None] | None = None
    ) -> Any:
        """Wait until a StorageElement that is drained is empty, and forgotten where that was wanted."""
        from khomas.api.storage.v1.drain_pb2 import Drain

        def done(drain: Any) -> bool:
            empty = drain.state == Drain.STATE_DRAINED and not drain.decommission
            return bool(empty or drain.state >= _FINAL_FROM)

        return await self.until(lambda: self.drained(storage_element), done, timeout=timeout, on_look=on_look)

    async def cancel_drain(self, storage_element: str) -> Any:
        """Let a StorageElement take files again."""
        from khomas.api.storage.v1 import placement_service_pb2 as pb

        return await self.call(_PLACEMENT, "CancelDrain", pb.CancelDrainRequest(name=_with("drains/", storage_element)))

    async def explain_drain(self, name: str) -> Any:
        """Say why a StorageElement is not empty yet."""
        from khomas.api.storage.v1 import placement_service_pb2 as pb

        return await self.call(_PLACEMENT, "ExplainDrain", pb.ExplainDrainRequest(name=_with("drains/", name)))


def rule_of(expression: str, copies: int, **wanted: Any) -> Any:
    """Build a ReplicationRule message; a lifetime is a timedelta, `together` keeps all files in one place."""
    from khomas.api.storage.v1.rule_pb2 import ReplicationRule

    if wanted.pop("together", False):
        wanted["grouping"] = ReplicationRule.GROUPING_ALL
    if wanted.get("dataset"):
        wanted["dataset"] = dataset_name(wanted["dataset"])
    return _filled(ReplicationRule(expression=expression, copies=copies), wanted)


def rule_name(text: str) -> str:
    """Return the resource name of a rule that may be given by its id alone."""
    return _with(_PREFIX, text)


def _filled(rule: Any, values: dict[str, Any]) -> Any:
    for key, value in values.items():
        if isinstance(value, timedelta):
            getattr(rule, key).FromTimedelta(value)
        elif value is not None:
            setattr(rule, key, value)
    return rule


def _with(prefix: str, text: str) -> str:
    return text if text.startswith(prefix) else prefix + text
