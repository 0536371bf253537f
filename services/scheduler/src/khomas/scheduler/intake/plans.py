"""What would happen to a job, without making it."""

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.scheduler.backends.interface import SubmitItem
from khomas.scheduler.engine.preparation import rendered
from khomas.scheduler.intake.blueprint import Identity
from khomas.scheduler.intake.drafts import Draft, child_job
from khomas.scheduler.placement.matching import Needs, match
from khomas.scheduler.placement.sites import Sites
from khomas.scheduler.records import Job

_RENDERED_CHILDREN = 10


def plan(draft: Draft, sites: Sites, with_scripts: bool) -> pb.Plan:
    """Choose a backend and write the scripts, of the first children of an array."""
    blueprint = draft.blueprint
    found = match(blueprint.spec, Needs.of(blueprint.spec), sites.offers(), sites.ranking)
    child = blueprint.child(0)
    values = blueprint.values(child, Identity(draft.job.uid))
    inputs = [one.lfn for one in blueprint.inputs(child, values, {}) if one.lfn]
    best = found.fitting[0].name if found.fitting else next(iter(found.closed))
    why = found.why or "; ".join(f"{name} is {closed}" for name, closed in found.closed.items())
    scripts = _scripts(draft, sites, best, found.queues.get(best, "")) if with_scripts else []
    return pb.Plan(
        backend=best,
        why=why,
        jobs=len(blueprint),
        inputs=inputs,
        scripts=scripts,
        resources=blueprint.spec.resources,
        others=found.others,
    )


def _scripts(draft: Draft, sites: Sites, backend: str, queue: str) -> list[pb.RenderedScript]:
    jobs: list[Job] = [draft.job]
    if draft.job.is_array:
        jobs = [child_job(draft.job, index, {}) for index in range(min(draft.job.total, _RENDERED_CHILDREN))]
    items = []
    for job in jobs:
        manifest = rendered(draft.blueprint, job._replace(backend=backend))
        items.append(SubmitItem(manifest["token"], manifest, queue))
    return [
        pb.RenderedScript(path=script.name, content=script.content.encode(), command=["sh", script.name])
        for script in sites[backend].backend.render(items)
    ]
