"""How the things of a trace are shown."""

from khomas.api.bookkeeping.v1.production_pb2 import Production, WorkItem
from khomas.api.bookkeeping.v1.run_pb2 import Run
from khomas.api.catalog.v1.dataset_pb2 import Dataset
from khomas.api.catalog.v1.file_pb2 import File, Replica
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.api.storage.v1.rule_pb2 import ReplicationRule
from khomas.api.storage.v1.transfer_pb2 import Transfer
from khomas.bookkeeping.trace.graph import Graph
from khomas.kit.database import AnyRow

RULE = "replicationRules/"
_KIND = {"job": "attempt", "adoption": "adoption", "upload": "transfer", "release": "release"}


def activity_name(row: AnyRow) -> str:
    """Return the resource that an activity is."""
    match row.kind:
        case "adoption":
            return f"adoptions/{row.uid}"
        case "upload":
            return f"uploads/{row.uid}"
        case "release":
            return str(row.attributes.get("release", f"releases/{row.uid}"))
    return f"activities/{row.uid}"


def add_activity(graph: Graph, row: AnyRow) -> str:
    """Add an activity, with the job of an attempt, and return its name."""
    name = activity_name(row)
    facts = row.attributes
    where = f" on {facts['node']}" if facts.get("node") else ""
    native = f", {facts.get('backend', '')} {row.native_id}" if row.native_id else ""
    graph.node(
        name,
        _KIND[row.kind],
        uid=row.uid,
        summary=f"{row.description}{where}{native}",
        time=row.end_time,
        facts={**facts, "agent": row.agent},
    )
    if row.job:
        graph.node(row.job, "job", uid=row.job.removeprefix("jobs/"), facts={"owner": row.agent})
        graph.edge(name, row.job, "attempt of")
    return name


def add_file(graph: Graph, file: File) -> None:
    """Add a file with its replicas."""
    sums = file.checksums
    state = "" if file.state == File.STATE_ACTIVE else f", {File.State.Name(file.state).removeprefix('STATE_')}"
    graph.node(
        file.name,
        "file",
        uid=file.uid,
        summary=f"{file.size_bytes} bytes, adler32 {sums.adler32 or 'unknown'}{state}",
        time=file.create_time.ToDatetime(),
        facts={
            "size_bytes": str(file.size_bytes),
            "adler32": sums.adler32,
            "sha256": sums.sha256,
            "content_digest": sums.content_digest,
            "owner": file.owner,
            "origin": file.origin,
        },
    )
    for replica in file.replicas:
        name = replica_name(replica)
        shown = Replica.State.Name(replica.state).removeprefix("STATE_")
        facts = {"path": replica.path, "storage_element": replica.storage_element}
        graph.node(name, "replica", summary=f"{shown} on {replica.storage_element}", facts=facts)
        graph.edge(name, file.name, "copy of")


def replica_name(replica: Replica) -> str:
    """Return what a replica is called in a trace."""
    return f"storageElements/{replica.storage_element}:{replica.path}"


def add_transfer(graph: Graph, transfer: Transfer) -> str:
    """Add a transfer with the file that it copies, and return its name."""
    state = Transfer.State.Name(transfer.state).removeprefix("STATE_")
    where = f"from {transfer.source} to {transfer.destination}" if transfer.source else f"to {transfer.destination}"
    graph.node(
        transfer.name,
        "transfer",
        uid=transfer.name.rpartition("/")[2],
        summary=f"{state} {where}",
        time=(transfer.end_time if transfer.HasField("end_time") else transfer.create_time).ToDatetime(),
        facts={
            "source": transfer.source,
            "destination": transfer.destination,
            "owner": transfer.owner,
            "origin": transfer.origin,
            "message": transfer.message,
        },
    )
    graph.edge(transfer.name, transfer.file, "used")
    return transfer.name


def add_dataset(graph: Graph, dataset: Dataset) -> str:
    """Add a dataset and return its name."""
    state = Dataset.State.Name(dataset.state).removeprefix("STATE_")
    summary = f"{state}, {dataset.file_count} files, {dataset.size_bytes} bytes {dataset.description}".strip()
    facts = {"owner": dataset.owner, "origin": dataset.origin}
    graph.node(dataset.name, "dataset", uid=dataset.uid, summary=summary, facts=facts)
    return dataset.name


def add_rule(graph: Graph, rule: ReplicationRule) -> str:
    """Add a replication rule and return its name."""
    state = ReplicationRule.State.Name(rule.state).removeprefix("STATE_")
    graph.node(
        rule.name,
        "rule",
        uid=rule.name.removeprefix(RULE),
        summary=f"{state}, {rule.copies} copies on {rule.expression} {rule.description}".strip(),
        time=rule.create_time.ToDatetime(),
        facts={"dataset": rule.dataset, "directory": rule.directory, "owner": rule.owner, "origin": rule.origin},
    )
    return rule.name


def add_job(graph: Graph, job: Job) -> None:
    """Say more about a job."""
    command = job.spec.command
    line = " ".join([command.executable, *command.arguments])[:200]
    state = JobState.Name(job.status.state).removeprefix("JOB_STATE_")
    facts = {"command": line, "display_name": job.spec.display_name, "owner": job.owner, "state": state}
    summary = f"{state} {line}".strip()
    graph.node(job.name, "job", uid=job.uid, summary=summary, time=job.create_time.ToDatetime(), facts=facts)


def add_item(graph: Graph, row: AnyRow) -> str:
    """Add a work item with its production, and return its name."""
    name = f"{row.production}/stages/{row.stage}/items/{row.uid}"
    state = WorkItem.State.Name(row.state).removeprefix("STATE_")
    summary = f"{state}, {row.file_count} files" + (f", group {row.group_value}" if row.group_value else "")
    facts = {"group": row.group_value, "stage": row.stage, "tries": str(row.tries)}
    graph.node(name, "work item", uid=row.uid, summary=summary, time=row.create_time, facts=facts)
    _add_production(graph, row, name)
    return name


def add_cell(graph: Graph, row: AnyRow) -> str:
    """Add a cell with its production, and return its name."""
    name = f"{row.production}/stages/{row.stage}/cells/{row.position}"
    facts = {key: str(value) for key, value in row.parameters}
    values = ", ".join(f"{key} = {value}" for key, value in facts.items())
    graph.node(name, "cell", summary=f"{values}; {row.requested_events} events wanted", facts=facts)
    _add_production(graph, row, name)
    return name


def _add_production(graph: Graph, row: AnyRow, part: str) -> None:
    graph.node(
        row.production,
        "production",
        uid=row.production_uid,
        summary=production_summary(row.production_state, row.production_description),
        time=row.production_time,
    )
    graph.edge(part, row.production, "part of")


def production_summary(state: int, description: str) -> str:
    """Return the line for a production."""
    shown = Production.State.Name(Production.State.ValueType(state)).removeprefix("STATE_")
    return f"{shown} {description}".strip()


def add_run(graph: Graph, row: AnyRow) -> None:
    """Add an observation run."""
    quality = Run.Quality.Name(Run.Quality.ValueType(row.quality)).removeprefix("QUALITY_").lower()
    graph.node(
        row.name,
        "run",
        uid=row.uid,
        summary=f"{row.target or 'unknown target'}, quality {'unknown' if row.quality == 0 else quality}",
        time=row.start_time or row.create_time,
        facts={"target": row.target, "period": row.period},
    )
