"""What events of the catalogue mean for rules. Nobody is asked anything here: it is part of a transaction."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import dataset_pb2, file_pb2
from khomas.api.common.v1 import event_pb2
from khomas.kit.database import in_values, rows_table
from khomas.storage.elements.elements import element_ids
from khomas.storage.rules import copies
from khomas.storage.rules.placing import Copy, CopyState
from khomas.storage.rules.protection import decide_alone, good_replicas
from khomas.storage.rules.tables import policy_dataset, rule, rule_copy, rule_join


async def note_files(connection: AsyncConnection, files: Mapping[str, file_pb2.File]) -> None:
    """Bring copies in line with files, by uid, as they are now; note which may belong to rules on directories."""
    await decide_alone(connection)
    rows = (await connection.execute(select(rule_copy).where(in_values(rule_copy.c.file_uid, list(files))))).all()
    elements = await element_ids(connection) if rows else set()
    judged = [(row.rule_uid, _now(copies.copy_of(row), files[row.file_uid], elements)) for row in rows]
    await copies.write(connection, [(rule_uid, copy) for rule_uid, copy in judged if copy is not None])
    gone = [uid for uid, file in files.items() if file.state == file_pb2.File.STATE_DELETED]
    if rows and gone:
        await copies.drop_where(connection, in_values(rule_copy.c.file_uid, gone))
    joining = await _joining(connection, files.values(), {(row.rule_uid, row.file) for row in rows})
    await _join(connection, joining)
    await touch(connection, {row.rule_uid for row in rows} | {rule_uid for rule_uid, _ in joining})


async def note_datasets(connection: AsyncConnection, events: Sequence[event_pb2.Event]) -> None:
    """Note which files join and leave rules with their datasets, and which datasets are new."""
    if events:
        await decide_alone(connection)
    for event in events:
        change, dataset = catalog_pb.DatasetChange(), dataset_pb2.Dataset()
        if event.resource.Unpack(change):
            await _moved(connection, change)
        elif event.kind == "catalog.dataset.created" and event.resource.Unpack(dataset):
            await new_dataset(connection, [(dataset.name, "")])


async def new_dataset(connection: AsyncConnection, names: Sequence[tuple[str, str]]) -> None:
    """Have policies asked about datasets: (name, id of the policy, or empty for all)."""
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(policy_dataset)
    rows = [{"dataset": dataset, "policy": policy} for dataset, policy in names]
    if rows:
        await connection.execute(insert.on_conflict_do_nothing(), rows)


async def list_all(connection: AsyncConnection) -> None:
    """Have all rules listed anew: events were missed."""
    await decide_alone(connection)
    values = {"list_due": True, "due_time": datetime.now(UTC), "touched": rule.c.touched + 1}
    await connection.execute(update(rule).values(values))


async def touch(connection: AsyncConnection, rule_uids: Iterable[str]) -> None:
    """Have rules looked at."""
    if uids := set(rule_uids):
        values = {"due_time": datetime.now(UTC), "touched": rule.c.touched + 1}
        await connection.execute(update(rule).where(in_values(rule.c.uid, uids)).values(values))


async def _moved(connection: AsyncConnection, change: catalog_pb.DatasetChange) -> None:
    query = select(rule.c.uid).where(rule.c.dataset == change.dataset)
    uids = list((await connection.scalars(query)).all())
    if not uids:
        return
    await _join(connection, [(uid, name) for uid in uids for name in change.added])
    if change.removed:
        left = in_values(rule_copy.c.file, list(change.removed))
        await copies.drop_where(connection, in_values(rule_copy.c.rule_uid, uids), left)
        named = in_values(rule_join.c.file, list(change.removed))
        await connection.execute(delete(rule_join).where(in_values(rule_join.c.rule_uid, uids), named))
    await touch(connection, uids)


async def _joining(
    connection: AsyncConnection, files: Iterable[file_pb2.File], members: set[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return (rule, file) where a file lies below the directory of a rule; the filter is asked about later."""
    query = select(rule.c.uid, rule.c.directory, rule.c.filter).where(rule.c.directory != "")
    rules = (await connection.execute(query)).all()
    active = [file.name for file in files if file.state == file_pb2.File.STATE_ACTIVE] if rules else []
    return [
        (row.uid, name)
        for row in rules
        for name in active
        if name.startswith(row.directory.rstrip("/") + "/") and (row.filter or (row.uid, name) not in members)
    ]


async def _join(connection: AsyncConnection, pairs: Sequence[tuple[str, str]]) -> None:
    if not pairs:
        return
    types = {"rule_uid": rule_join.c.rule_uid.type, "file": rule_join.c.file.type, "times": rule_join.c.times.type}
    new = rows_table(connection, types, [(*pair, 1) for pair in dict.fromkeys(pairs)])
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(rule_join)
    given = select(new.c.rule_uid, new.c.file, new.c.times).where(new.c.times == 1)
    statement = insert.from_select(list(types), given, include_defaults=False)
    again = {"times": rule_join.c.times + 1}
    await connection.execute(statement.on_conflict_do_update(index_elements=["rule_uid", "file"], set_=again))


def _now(copy: Copy, file: file_pb2.File, elements: Collection[str]) -> Copy | None:
    """Return a copy as it is after a change of its file; None if it is as it was."""
    if file.state != file_pb2.File.STATE_ACTIVE:
        return None
    there = good_replicas(file, elements)
    now = datetime.now(UTC)
    if copy.state == CopyState.OK and copy.storage_element not in there:
        return replace(copy, state=CopyState.PENDING, storage_element="", transfer_uid="", state_time=now)
    if copy.state != CopyState.OK and copy.storage_element in there:
        arrived = replace(copy, state=CopyState.OK, moving_from="", reason=0, message="", refused="")
        return replace(arrived, state_time=now)
    if copy.state == CopyState.STUCK and there:
        return replace(copy, state=CopyState.PENDING, state_time=now)
    return None
